"""Rows as parallel arrays, one for each column: the form in which any number of rows has one SQL text; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def thread_binds(thread_ids: Sequence[str]) -> dict[str, Any]:
    """Return the binds of statements about some threads; of one about distributed tables, which are one thread's."""
    return {"thread_ids": [*thread_ids], "thread_id": thread_ids[0] if len(thread_ids) == 1 else None}


def array_binds(columns: Sequence[str], rows: Iterable[Sequence[Any]], prefix: str = "") -> dict[str, list[Any]]:
    """Return rows as the binds of `rows_of_binds`: an array for each column, by the plural of the column's name."""
    arrays = list(zip(*rows, strict=True)) or [()] * len(columns)
    return {f"{prefix}{name}s": list(array) for name, array in zip(columns, arrays, strict=True)}

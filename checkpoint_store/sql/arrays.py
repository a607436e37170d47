"""Rows as parallel arrays, one for each column: the form in which any number of rows has one SQL text; no I/O."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def array_binds(columns: Sequence[str], rows: Iterable[Sequence[Any]], prefix: str = "") -> dict[str, list[Any]]:
    """Return rows as the binds of `rows_of_binds`: an array for each column, by the plural of the column's name."""
    arrays = list(zip(*rows, strict=True)) or [()] * len(columns)
    return {f"{prefix}{name}s": list(array) for name, array in zip(columns, arrays, strict=True)}

"""The statements that convert stored values to shared pages and back; no I/O."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql import expressions as ex
from checkpoint_store.sql.write import claimed_threads, new_pages


def next_blobs(t: Tables) -> sa.Select[Any]:
    """Select the blobs of a type that follow a key, with the stored bytes: a recipe as it is.

    Binds: `type`, `min_bytes`, and those of `after`.
    """
    b = t.checkpoint_blobs
    found = after(b).with_only_columns(*b.primary_key, b.c.blob)
    return found.where(
        b.c.type == ex.param("type"), sa.func.octet_length(b.c.blob) >= ex.param("min_bytes", sa.Integer)
    )


def after(table: sa.Table) -> sa.Select[Any]:
    """Select the rows of a table that follow a key; of a distributed one, those of its thread.

    Binds: the key, `last_thread_id` and so on, `limit`, and of a distributed table `thread_id`.
    """
    keys: list[sa.Column[Any]] = list(table.primary_key)
    last = [ex.param(f"last_{column.name}", column.type) for column in keys]
    found = sa.select(table).where(sa.tuple_(*keys) > sa.tuple_(*last))
    if ex.is_distributed(table):
        found = found.where(ex.in_thread(table))
    return found.order_by(*keys).limit(ex.param("limit", sa.Integer))


def next_threads(t: Tables, name: str) -> sa.Select[Any]:
    """Select the threads that follow one and have rows in a table. Binds: `after` and `limit`."""
    thread_id = getattr(t, name).c.thread_id
    found = sa.select(thread_id).where(thread_id > ex.param("after")).group_by(thread_id)
    return found.order_by(thread_id).limit(ex.param("limit", sa.Integer))


def share_blobs(t: Tables) -> sa.Select[Any]:
    """Replace plain blobs of one thread by recipes, and store all their pages; see `write.claimed_threads`.

    Returns the thread if it passed, with the numbers of pages written and of blobs replaced. Binds: those of
    `write.store` for gates, pages and blobs.
    """
    passed, b = claimed_threads(t), t.checkpoint_blobs
    pages = new_pages(t, passed)
    new = ex.rows_of_binds("blob_", **ex.key_types(b), type=sa.Text, blob=sa.LargeBinary)
    changed = sa.update(b).values(type=new.c.type, blob=new.c.blob)
    changed = changed.where(
        ex.same_blob(b, new), b.c.type != ex.text_literal(PAGED), passed.c.thread_id == new.c.thread_id
    )
    replaced = changed.returning(ex.ONE).cte("replaced_blobs")
    return sa.select(passed.c.thread_id, ex.count_of(pages), ex.count_of(replaced))


def inline_blobs(t: Tables) -> sa.Update:
    """Replace recipes by their values, unless a page is missing. Returns a thread for each.

    Binds: the blobs' keys as arrays, `blob_thread_ids`, `blob_checkpoint_nss`, `blob_channels`, `blob_versions`.
    """
    b = t.checkpoint_blobs
    paged = b.alias("paged")
    new = ex.rows_of_binds("blob_", **ex.key_types(b))
    kind, value = ex.value_of(t, paged)
    whole = sa.select(*[paged.c[column.name] for column in b.primary_key], kind, value)
    whole = whole.select_from(new.join(paged, ex.same_blob(paged, new))).where(paged.c.type == ex.text_literal(PAGED))
    found = whole.cte("found")
    changed = sa.update(b).values(type=found.c.type, blob=found.c.blob)
    return changed.where(ex.same_blob(b, found), found.c.blob.is_not(None)).returning(b.c.thread_id)

"""The statements that convert stored values to shared pages and back; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    Integer,
    LargeBinary,
    Select,
    Text,
    Update,
    func,
    select,
    tuple_,
    update,
)

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.expressions import (
    ONE,
    count_of,
    key_types,
    param,
    rows_of_binds,
    same_blob,
    text_literal,
    value_of,
)
from checkpoint_store.sql.write import claimed_threads, new_pages


def next_blobs(t: Tables) -> Select[Any]:
    """Select the blobs of a type that follow a key, with the stored bytes: a recipe as it is.

    Binds: `type`, `min_bytes`, `limit`, and the key to start after: `thread_id`, `checkpoint_ns`, `channel`, `version`.
    """
    b = t.checkpoint_blobs
    keys = list(b.primary_key)
    return (
        select(*keys, b.c.blob)
        .where(tuple_(*keys) > tuple_(*[param(column.name) for column in keys]))
        .where(b.c.type == param("type"), func.octet_length(b.c.blob) >= param("min_bytes", Integer))
        .order_by(*keys)
        .limit(param("limit", Integer))
    )


def share_blobs(t: Tables) -> Select[Any]:
    """Replace plain blobs of one thread by recipes, and store all their pages; see `write.claimed_threads`.

    Returns the thread if it passed, with the numbers of pages written and of blobs replaced. Binds: those of
    `write.store` for gates, pages and blobs.
    """
    passed, b = claimed_threads(t), t.checkpoint_blobs
    pages = new_pages(t, passed)
    new = rows_of_binds("blob_", **key_types(b), type=Text, blob=LargeBinary)
    replaced = (
        update(b)
        .values(type=new.c.type, blob=new.c.blob)
        .where(same_blob(b, new), b.c.type != text_literal(PAGED), passed.c.thread_id == new.c.thread_id)
        .returning(ONE)
        .cte("replaced_blobs")
    )
    return select(passed.c.thread_id, count_of(pages), count_of(replaced))


def inline_blobs(t: Tables) -> Update:
    """Replace recipes by their values, unless a page is missing. Returns a thread for each.

    Binds: the blobs' keys as arrays, `blob_thread_ids`, `blob_checkpoint_nss`, `blob_channels`, `blob_versions`.
    """
    b = t.checkpoint_blobs
    paged = b.alias("paged")
    new = rows_of_binds("blob_", **key_types(b))
    kind, value = value_of(t, paged)
    whole = select(*[paged.c[column.name] for column in b.primary_key], kind, value)
    whole = whole.select_from(new.join(paged, same_blob(paged, new))).where(paged.c.type == text_literal(PAGED))
    found = whole.cte("found")
    return (
        update(b)
        .values(type=found.c.type, blob=found.c.blob)
        .where(same_blob(b, found), found.c.blob.is_not(None))
        .returning(b.c.thread_id)
    )

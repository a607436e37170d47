"""The statements that tell what is stored, and how large it is; no I/O.

Bytes are those that PostgreSQL stores of the columns: compressed where it compresses, without indexes and row headers.
To ask for them reads no large value: what is stored out of line says how long it is.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    cast,
    column,
    func,
    select,
    table,
    true,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.arrays import array_param
from checkpoint_store.sql.expressions import digests_of, int_literal, members_of, param, text_literal


def thread_tables(t: Tables) -> Any:
    """Select how many rows and bytes each table has of a thread, under the table's name. Binds: `thread_id`."""
    return union_all(
        *[
            select(text_literal(table.name), func.count(), _total(_row_bytes(table))).where(
                table.c.thread_id == param("thread_id")
            )
            for table in t.metadata.sorted_tables
        ]
    )


def thread_channels(t: Tables) -> Select[Any]:
    """Select what the channels of a thread occupy, the largest first.

    A row is a graph (the namespace without what is different at each call), a channel, how many values and pending
    writes it has, and their bytes. A page that several values share is counted once. Binds: `thread_id`.
    """
    c, b, w, p = t.checkpoints, t.checkpoint_blobs, t.checkpoint_writes, t.checkpoint_pages
    nothing = int_literal(0).label("count")
    pairs = func.jsonb_each(members_of(c.c.checkpoint, "channel_values"))
    inline = pairs.table_valued("key", column("value", JSONB)).render_derived("inline")
    paged = digests_of(b).add_columns(_graph(b), b.c.channel)
    paged = paged.where(b.c.thread_id == param("thread_id"), b.c.type == text_literal(PAGED))
    digests = paged.subquery("digests")
    # A page that several channels share is the first one's.
    first = func.row_number().over(partition_by=digests.c.digest, order_by=[digests.c.graph, digests.c.channel])
    placed = select(digests, first.label("place")).subquery("placed")
    once = select(placed).where(placed.c.place == int_literal(1)).subquery("once")
    parts = union_all(
        select(_graph(b), b.c.channel, int_literal(1).label("values"), nothing, _bytes(b.c.blob)).where(
            b.c.thread_id == param("thread_id")
        ),
        select(_graph(c), inline.c.key, int_literal(1), nothing, _bytes(inline.c.value))
        .select_from(c.join(inline, true()))
        .where(c.c.thread_id == param("thread_id")),
        select(once.c.graph, once.c.channel, nothing, nothing, _bytes(p.c.page))
        .select_from(once.join(p, p.c.digest == once.c.digest))
        .where(p.c.thread_id == param("thread_id")),
        select(_graph(w), w.c.channel, nothing, int_literal(1), _bytes(w.c.blob)).where(
            w.c.thread_id == param("thread_id")
        ),
    ).subquery("parts")
    graph, channel, values, writes, size = parts.c
    total = _total(size).label("total")
    return (
        select(graph, channel, _total(values), _total(writes), total)
        .group_by(graph, channel)
        .order_by(total.desc(), graph, channel)
    )


def largest_threads(t: Tables) -> Select[Any]:
    """Select the threads that have most, how many checkpoints and how many bytes; reads all rows. Binds: `limit`."""
    parts = union_all(
        *[
            select(
                table.c.thread_id,
                (func.count() if table is t.checkpoints else int_literal(0)).label("checkpoints"),
                _total(_row_bytes(table)).label("bytes"),
            ).group_by(table.c.thread_id)
            for table in t.metadata.sorted_tables
        ]
    ).subquery("parts")
    total = _total(parts.c.bytes).label("total")
    return (
        select(parts.c.thread_id, _total(parts.c.checkpoints), total)
        .group_by(parts.c.thread_id)
        .order_by(total.desc(), parts.c.thread_id)
        .limit(param("limit", Integer))
    )


def table_sizes(_: Tables) -> Select[Any]:
    """Select how many rows tables have, as the server last counted, and what they occupy with all that belongs to them.

    A row is a name, the rows, and the bytes; of a partitioned table those of its partitions. Binds: `names`.
    """
    name = func.unnest(array_param("names")).table_valued("name").render_derived("named")
    part = func.pg_partition_tree(func.to_regclass(name.c.name)).table_valued("relid").lateral("part")
    known = table("pg_class", column("oid"), column("reltuples"), schema="pg_catalog")
    # A table without partitions is no part of a tree either.
    relation = func.coalesce(part.c.relid, func.to_regclass(name.c.name))
    # -1 says that nobody has counted yet.
    rows = cast(func.sum(known.c.reltuples).filter(known.c.reltuples >= int_literal(0)), BigInteger)
    size = func.sum(func.pg_total_relation_size(relation))
    return (
        select(name.c.name, rows, cast(size, BigInteger))
        .select_from(name.outerjoin(part, true()).join(known, known.c.oid == relation))
        .group_by(name.c.name)
    )


def _graph(rows: FromClause) -> ColumnElement[str]:
    """A namespace without the ids of tasks: `node:task|node:task` is `node|node`."""
    return func.regexp_replace(
        rows.c.checkpoint_ns, text_literal(":[^|]*"), text_literal(""), text_literal("g"), type_=Text
    ).label("graph")


def _bytes(value: ColumnElement[Any]) -> ColumnElement[int]:
    return func.coalesce(func.pg_column_size(value, type_=Integer), int_literal(0)).label("bytes")


def _row_bytes(table: Table) -> ColumnElement[int]:
    return reduce(lambda total, size: total + size, [_bytes(value) for value in table.columns])


def _total(size: ColumnElement[Any]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(size), int_literal(0)), BigInteger)

"""The statements that count rows and their bytes; no I/O.

Bytes are those that PostgreSQL stores of the columns, after its compression, without indexes and row headers. No large
value is read for them: the length of a value that is stored out of line is part of the row.
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
from checkpoint_store.sql.expressions import ONE, ZERO, array_param, digests_of, members_of, param, text_literal


def thread_tables(t: Tables) -> Any:
    """Select the name of each table, and the numbers of rows and bytes that it has of a thread. Binds: `thread_id`."""
    return union_all(
        *[
            select(text_literal(table.name), func.count(), _total(_row_bytes(table))).where(
                table.c.thread_id == param("thread_id")
            )
            for table in t.metadata.sorted_tables
        ]
    )


def thread_channels(t: Tables) -> Select[Any]:
    """Select the channels of a thread with the bytes that they occupy, the largest first.

    A row is a graph (the namespace without task ids, which differ at each call), a channel, its numbers of values and
    of pending writes, and their bytes. A page that several values share is counted once. Binds: `thread_id`.
    """
    c, b, w, p = t.checkpoints, t.checkpoint_blobs, t.checkpoint_writes, t.checkpoint_pages
    nothing = ZERO.label("count")
    pairs = func.jsonb_each(members_of(c.c.checkpoint, "channel_values"))
    inline = pairs.table_valued("key", column("value", JSONB)).render_derived("inline")
    paged = digests_of(b).add_columns(_graph(b), b.c.channel)
    paged = paged.where(b.c.thread_id == param("thread_id"), b.c.type == text_literal(PAGED))
    digests = paged.subquery("digests")
    # A page that several channels share counts for the first of them.
    first = func.row_number().over(partition_by=digests.c.digest, order_by=[digests.c.graph, digests.c.channel])
    placed = select(digests, first.label("place")).subquery("placed")
    once = select(placed).where(placed.c.place == ONE).subquery("once")
    parts = union_all(
        select(_graph(b), b.c.channel, ONE.label("values"), nothing, _bytes(b.c.blob)).where(
            b.c.thread_id == param("thread_id")
        ),
        select(_graph(c), inline.c.key, ONE, nothing, _bytes(inline.c.value))
        .select_from(c.join(inline, true()))
        .where(c.c.thread_id == param("thread_id")),
        select(once.c.graph, once.c.channel, nothing, nothing, _bytes(p.c.page))
        .select_from(once.join(p, p.c.digest == once.c.digest))
        .where(p.c.thread_id == param("thread_id")),
        select(_graph(w), w.c.channel, nothing, ONE, _bytes(w.c.blob)).where(w.c.thread_id == param("thread_id")),
    ).subquery("parts")
    graph, channel, values, writes, size = parts.c
    total = _total(size).label("total")
    return (
        select(graph, channel, _total(values), _total(writes), total)
        .group_by(graph, channel)
        .order_by(total.desc(), graph, channel)
    )


def largest_threads(t: Tables) -> Select[Any]:
    """Select the largest threads, with their numbers of checkpoints and bytes; reads all rows. Binds: `limit`."""
    parts = union_all(
        *[
            select(
                table.c.thread_id,
                (func.count() if table is t.checkpoints else ZERO).label("checkpoints"),
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
    """Select the names of tables, their rows by the server's last count, and their bytes with indexes and TOAST.

    Of a partitioned table these are the sums of its partitions. Binds: `names`.
    """
    name = func.unnest(array_param("names")).table_valued("name").render_derived("named")
    part = func.pg_partition_tree(func.to_regclass(name.c.name)).table_valued("relid").lateral("part")
    known = table("pg_class", column("oid"), column("reltuples"), schema="pg_catalog")
    # A table without partitions is not part of a tree.
    relation = func.coalesce(part.c.relid, func.to_regclass(name.c.name))
    # -1 means that the rows were not counted yet.
    rows = cast(func.sum(known.c.reltuples).filter(known.c.reltuples >= ZERO), BigInteger)
    size = func.sum(func.pg_total_relation_size(relation))
    return (
        select(name.c.name, rows, cast(size, BigInteger))
        .select_from(name.outerjoin(part, true()).join(known, known.c.oid == relation))
        .group_by(name.c.name)
    )


def _graph(rows: FromClause) -> ColumnElement[str]:
    """Return a namespace without the ids of tasks: `node|node` for `node:task|node:task`."""
    return func.regexp_replace(
        rows.c.checkpoint_ns, text_literal(":[^|]*"), text_literal(""), text_literal("g"), type_=Text
    ).label("graph")


def _bytes(value: ColumnElement[Any]) -> ColumnElement[int]:
    return func.coalesce(func.pg_column_size(value, type_=Integer), ZERO).label("bytes")


def _row_bytes(table: Table) -> ColumnElement[int]:
    return reduce(lambda total, size: total + size, [_bytes(value) for value in table.columns])


def _total(size: ColumnElement[Any]) -> ColumnElement[int]:
    return cast(func.coalesce(func.sum(size), ZERO), BigInteger)

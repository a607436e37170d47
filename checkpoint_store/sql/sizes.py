"""The statements that count rows and their bytes; no I/O.

Bytes are those that PostgreSQL stores of the columns, after its compression, without indexes and row headers. No large
value is read for them: the length of a value that is stored out of line is part of the row.
"""

from __future__ import annotations

from functools import reduce
from operator import attrgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql import expressions as ex

_CLASSES = sa.table("pg_class", sa.column("oid"), sa.column("reltuples"), schema="pg_catalog")


def thread_tables(t: Tables) -> Any:
    """Select the name of each table, and the numbers of rows and bytes that it has of a thread. Binds: `thread_id`."""
    return sa.union_all(
        *[
            sa.select(ex.text_literal(one.name), sa.func.count(), _total(_row_bytes(one))).where(ex.in_thread(one))
            for one in sorted(t.all, key=attrgetter("name"))
        ]
    )


def thread_channels(t: Tables) -> sa.Select[Any]:
    """Select the channels of a thread with the bytes that they occupy, the largest first.

    A row is a graph (the namespace without task ids, which differ at each call), a channel, its numbers of values and
    of pending writes, and their bytes. A page that several values share is counted once. Binds: `thread_id`.
    """
    c, b, w, p = t.checkpoints, t.checkpoint_blobs, t.checkpoint_writes, t.checkpoint_pages
    nothing = ex.ZERO.label("count")
    pairs = sa.func.jsonb_each(ex.members_of(c.c.checkpoint, "channel_values"))
    inline = pairs.table_valued("key", sa.column("value", pg.JSONB)).render_derived("inline")
    paged = ex.digests_of(b).add_columns(_graph(b), b.c.channel)
    paged = paged.where(ex.in_thread(b), b.c.type == ex.text_literal(PAGED))
    digests = paged.subquery("digests")
    # A page that several channels share counts for the first of them.
    first = sa.func.row_number().over(partition_by=digests.c.digest, order_by=[digests.c.graph, digests.c.channel])
    placed = sa.select(digests, first.label("place")).subquery("placed")
    once = sa.select(placed).where(placed.c.place == ex.ONE).subquery("once")
    parts = sa.union_all(
        sa.select(_graph(b), b.c.channel, ex.ONE.label("values"), nothing, _bytes(b.c.blob)).where(ex.in_thread(b)),
        sa.select(_graph(c), inline.c.key, ex.ONE, nothing, _bytes(inline.c.value))
        .select_from(c.join(inline, sa.true()))
        .where(ex.in_thread(c)),
        sa.select(once.c.graph, once.c.channel, nothing, nothing, _bytes(p.c.page))
        .select_from(once.join(p, p.c.digest == once.c.digest))
        .where(ex.in_thread(p)),
        sa.select(_graph(w), w.c.channel, nothing, ex.ONE, _bytes(w.c.blob)).where(ex.in_thread(w)),
    ).subquery("parts")
    graph, channel, values, writes, size = parts.c
    total = _total(size).label("total")
    found = sa.select(graph, channel, _total(values), _total(writes), total).group_by(graph, channel)
    return found.order_by(total.desc(), graph, channel)


def largest_threads(t: Tables) -> sa.Select[Any]:
    """Select the largest threads, with their numbers of checkpoints and bytes; reads all rows. Binds: `limit`."""
    parts = sa.union_all(
        *[
            _thread_bytes(table, (sa.func.count() if table is t.checkpoints else ex.ZERO).label("rows"))
            for table in t.all
        ]
    ).subquery("parts")
    total = _total(parts.c.bytes).label("total")
    found = sa.select(parts.c.thread_id, _total(parts.c.rows), total).group_by(parts.c.thread_id)
    return found.order_by(total.desc(), parts.c.thread_id).limit(ex.param("limit", sa.Integer))


def thread_sizes(t: Tables) -> sa.Select[Any]:
    """Select some threads with their bytes. Binds: `thread_ids`."""
    parts = sa.union_all(*[_thread_bytes(table).where(ex.among_threads(table)) for table in t.all]).subquery("parts")
    return sa.select(parts.c.thread_id, _total(parts.c.bytes)).group_by(parts.c.thread_id)


def _thread_bytes(table: sa.Table, *others: sa.ColumnElement[Any]) -> sa.Select[Any]:
    return sa.select(table.c.thread_id, _total(_row_bytes(table)).label("bytes"), *others).group_by(table.c.thread_id)


def table_sizes(t: Tables) -> sa.Select[Any]:
    """Select the names of tables, their rows by the server's last count, and their bytes with indexes and TOAST.

    Of a partitioned table these are the sums of its partitions, of a distributed one of its shards. Binds: `names`.
    """
    name = sa.func.unnest(ex.array_param("names")).table_valued("name").render_derived("named")
    if ex.is_distributed(t.checkpoints):
        return _shard_sizes(name)
    part = sa.func.pg_partition_tree(sa.func.to_regclass(name.c.name)).table_valued("relid").lateral("part")
    # A table without partitions is not part of a tree.
    relation = sa.func.coalesce(part.c.relid, sa.func.to_regclass(name.c.name))
    # -1 means that the rows were not counted yet.
    rows = sa.cast(sa.func.sum(_CLASSES.c.reltuples).filter(_CLASSES.c.reltuples >= ex.ZERO), sa.BigInteger)
    size = sa.func.sum(sa.func.pg_total_relation_size(relation))
    found = sa.select(name.c.name, rows, sa.cast(size, sa.BigInteger))
    return found.select_from(name.outerjoin(part, sa.true()).join(_CLASSES, _CLASSES.c.oid == relation)).group_by(
        name.c.name
    )


def _shard_sizes(name: sa.TableValuedAlias) -> sa.Select[Any]:
    table = sa.func.to_regclass(name.c.name)
    # The text of a statement for each shard, whose name takes the place of `%s`.
    shard: sa.ColumnElement[Any] = sa.literal_column("'%s'::regclass")
    count = ex.text_literal(str(sa.select(_CLASSES.c.reltuples).where(_CLASSES.c.oid == shard)).replace("'", "''"))
    counts = sa.func.run_command_on_shards(table, count).table_valued("result").lateral("counts")
    counted = sa.cast(counts.c.result, sa.Double)
    rows = sa.select(sa.cast(sa.func.sum(counted).filter(counted >= ex.ZERO), sa.BigInteger)).select_from(counts)
    return sa.select(name.c.name, rows.correlate(name).scalar_subquery(), sa.func.citus_total_relation_size(table))


def _graph(rows: sa.FromClause) -> sa.ColumnElement[str]:
    """Return a namespace without the ids of tasks: `node|node` for `node:task|node:task`."""
    return sa.func.regexp_replace(
        rows.c.checkpoint_ns, ex.text_literal(":[^|]*"), ex.text_literal(""), ex.text_literal("g"), type_=sa.Text
    ).label("graph")


def _bytes(value: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.pg_column_size(value, type_=sa.Integer), ex.ZERO).label("bytes")


def _row_bytes(table: sa.Table) -> sa.ColumnElement[int]:
    return reduce(lambda total, size: total + size, [_bytes(value) for value in table.columns])


def _total(size: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.coalesce(sa.func.sum(size), ex.ZERO), sa.BigInteger)

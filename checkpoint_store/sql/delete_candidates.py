"""The statements that look for checkpoints to remove, and for what others depend on; no I/O."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Numeric,
    Table,
    TableValuedAlias,
    Text,
    and_,
    case,
    cast,
    column,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    table,
    true,
    union,
)

from checkpoint_store.schema import PAGED, Tables, qualified
from checkpoint_store.sql.arrays import array_param, few_rows_of_binds
from checkpoint_store.sql.expressions import (
    has_member,
    in_threads,
    int_literal,
    is_value,
    member,
    member_text,
    param,
    same_checkpoint,
    same_namespace,
    text_literal,
)

_COUNTERS = text_literal("counters_since_delta_snapshot")
"""Where LangGraph counts the updates of delta channels, in a checkpoint's metadata."""

_FALSE = literal_column("false", Boolean)


def next_threads(t: Tables) -> Executable:
    """Select the threads that follow one, and how many checkpoints those have that may have something to remove.

    Binds: see `_walk`; `keep` and `before` as in `deletion_plan.Rule`.
    """
    c, walk = t.checkpoints.c, _walk(t.checkpoints)
    namespace = (
        select(func.count().label("count"), func.min(c.checkpoint_id).label("oldest"))
        .where(c.thread_id == walk.c.thread_id)
        .group_by(c.checkpoint_ns)
        .correlate(walk)
        .subquery("namespace")
    )
    before = param("before")
    is_old = or_(before.is_(None), namespace.c.oldest < before)
    is_worth_a_look = func.bool_or(and_(namespace.c.count > param("keep", Integer), is_old))
    size = select(cast(func.sum(namespace.c.count), BigInteger).label("count")).having(is_worth_a_look).lateral("size")
    found = select(walk.c.thread_id, size.c.count).select_from(walk.outerjoin(size, true()))
    return found.where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def next_writers(t: Tables) -> Executable:
    """Select the threads that follow one among those that have pending writes. Binds: see `_walk`."""
    walk = _walk(t.checkpoint_writes)
    return select(walk.c.thread_id).where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def orphaned_writes(t: Tables) -> Executable:
    """Select the keys of the checkpoints that threads have writes of but that aren't there.

    Binds: `thread_ids`, and `before`, an id: only lesser ones.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    keys = ("thread_id", "checkpoint_ns", "checkpoint_id")
    written = select(*[w.c[name] for name in keys])
    written = written.where(in_threads(w), w.c.checkpoint_id < param("before"))
    return written.except_(select(*c.primary_key).where(in_threads(c)))


def next_leftovers(t: Tables) -> Executable:
    """Select the threads that follow one among those that have values, pages or a row of their own.

    Returns of each whether it is left over, see `_is_leftover`. Binds: see `_walk`; `before`, an id, or NULL.
    """
    walk = _walk(t.checkpoint_blobs, t.checkpoint_pages, t.checkpoint_threads)
    chosen = select(walk.c.thread_id, _is_leftover(t, walk, param("before")))
    return chosen.where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def leftover_threads(t: Tables) -> Executable:
    """Select which of some threads are left over, whatever their age. Binds: `thread_ids`."""
    given = few_rows_of_binds("", thread_id=Text)
    return select(given.c.thread_id).where(_is_leftover(t, given, cast(null(), Text)))


def _is_leftover(t: Tables, of: FromClause, before: ColumnElement[str]) -> ColumnElement[bool]:
    """Whether a thread has no checkpoint, nor any write to one that is not older than an id; or pages but no recipe."""
    c, w, b, p = t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs, t.checkpoint_pages

    def lacks(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        # A value, not EXISTS, for which the server might read the whole table.
        found = select(true()).where(table.c.thread_id == of.c.thread_id, *conditions).limit(int_literal(1))
        return found.correlate(of).scalar_subquery().is_(None)

    is_alone = and_(lacks(c), lacks(w, w.c.checkpoint_id >= before))
    return and_(_sees_all(t), or_(is_alone, and_(~lacks(p), lacks(b, b.c.type == text_literal(PAGED)))))


def _sees_all(t: Tables) -> ColumnElement[bool]:
    """Whether what is not seen is not there: no policy hides rows, and nobody is restoring a backup, table by table."""
    names = [qualified(one.name, t.schema).replace("'", "''") for one in t.all]
    hides = [func.row_security_active(text_literal(name), type_=Boolean) for name in names]
    texts = [column(name, Text) for name in ("application_name", "state")]
    a = func.pg_stat_get_activity(cast(null(), Integer)).table_valued("datid", "pid", *texts)
    d = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")
    here = select(d.c.oid).where(d.c.datname == func.current_database()).scalar_subquery()
    # psql, of a dump as SQL, while it is at work; and PostgreSQL's own first copy of a subscription.
    restores = or_(
        a.c.application_name == text_literal("pg_restore"),
        and_(a.c.application_name == text_literal("psql"), a.c.state.is_distinct_from(text_literal("idle"))),
        a.c.application_name.regexp_match(text_literal("^pg_[0-9]+_sync_")),
    )
    others = select(true()).where(a.c.datid == here, a.c.pid != func.pg_backend_pid(), restores)
    return and_(~or_(*hides), others.limit(int_literal(1)).scalar_subquery().is_(None))


def blob_namespaces(t: Tables) -> Executable:
    """Select the namespaces that some threads have values of. Binds: `thread_ids`."""
    b = t.checkpoint_blobs
    return select(b.c.thread_id, b.c.checkpoint_ns).where(in_threads(b)).distinct()


def checkpoint_counts(t: Tables) -> Executable:
    """Select how many checkpoints some threads have; none that has none. Binds: `thread_ids`."""
    c = t.checkpoints
    return select(c.c.thread_id, func.count()).where(in_threads(c)).group_by(c.c.thread_id)


def threads_of_runs(t: Tables) -> Executable:
    """Select the threads that some runs have left checkpoints in, and how many. Binds: `run_ids`."""
    c = t.checkpoints.c
    # That it is not NULL has to be said: the index has no others.
    is_theirs = and_(_is_chosen(t), member_text(c.metadata, text_literal("run_id")).is_not(None))
    return select(c.thread_id, func.count()).where(is_theirs).group_by(c.thread_id)


def candidates(t: Tables) -> Executable:
    """Select the checkpoints of threads as `deletion_plan.Node` has them, by namespace, the oldest first.

    Binds: `thread_ids`, `run_ids`.
    """
    c = t.checkpoints.c
    is_call = func.strpos(c.checkpoint_ns, text_literal(":"), type_=Integer) > int_literal(0)
    counters = _names(member(c.metadata, _COUNTERS))
    counted = select(func.array_agg(counters.c.channel)).correlate(t.checkpoints).scalar_subquery()
    return (
        select(
            c.thread_id,
            c.checkpoint_ns,
            c.checkpoint_id,
            c.parent_checkpoint_id,
            func.coalesce(_is_chosen(t), _FALSE),
            case((is_call, cast(member(c.metadata, text_literal("parents")), Text))),
            case((has_member(c.metadata, _COUNTERS), counted)),
        )
        .where(in_threads(t.checkpoints))
        .order_by(c.thread_id, c.checkpoint_ns, c.checkpoint_id)
    )


def channels_without_value(t: Tables) -> Executable:
    """Select some checkpoints, whether they are older than format 4, and their bare channels as an array, or NULL.

    These are the channels that they have a version of, or their parent's tasks wrote to, but no value. Those of
    LangGraph's that only trigger nodes are left out: there are too many of them. Binds: the checkpoints' keys as
    arrays, `node_thread_ids`, `node_checkpoint_nss`, `node_checkpoint_ids`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    node = few_rows_of_binds("node_", thread_id=Text, checkpoint_ns=Text, checkpoint_id=Text)
    versions = _names(member(c.c.checkpoint, text_literal("channel_versions")))
    written = select(w.c.channel).where(same_namespace(w, c), w.c.checkpoint_id == c.c.parent_checkpoint_id)
    channel = union(select(versions.c.channel).correlate(c), written.correlate(c)).subquery("channels").c.channel
    is_internal = or_(
        func.starts_with(channel, text_literal("__"), type_=Boolean),
        func.starts_with(channel, text_literal("branch:"), type_=Boolean),
    )
    # By key, as in `ancestry`: for an EXISTS all blobs of the thread would be read, anew for each checkpoint.
    blob = select(literal_column("true", Boolean)).where(is_value(t.checkpoint_blobs, c, channel)).limit(int_literal(1))
    blob = blob.correlate_except(t.checkpoint_blobs)
    has_value = or_(_is_inline(c, channel), func.coalesce(blob.scalar_subquery(), _FALSE))
    bare = select(func.array_agg(channel)).where(~is_internal, ~has_value).correlate(c)
    is_old = cast(member_text(c.c.checkpoint, text_literal("v")), Numeric) < int_literal(4)
    return select(*c.primary_key, func.coalesce(is_old, _FALSE), bare.scalar_subquery()).select_from(
        node.join(c, same_checkpoint(c, node))
    )


def traces(t: Tables) -> Executable:
    """Select what each checkpoint of some namespaces has of some channels, as `deletion_plan.Trace` has it.

    Binds: arrays that go together, `sought_thread_ids`, `sought_checkpoint_nss`, `sought_channels`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    sought = few_rows_of_binds("sought_", thread_id=Text, checkpoint_ns=Text, channel=Text)
    channel = sought.c.channel
    written = exists().where(same_checkpoint(w, c), w.c.channel == channel)
    # Of all checkpoints at once; the server may well make a hash of the blobs.
    blob = exists().where(is_value(t.checkpoint_blobs, c, channel)).correlate_except(t.checkpoint_blobs)
    # A snapshot is marked inline, by what no value with a blob has there.
    is_marked = member(member(c.c.checkpoint, text_literal("channel_values")), channel) == literal_column(
        "'true'::jsonb"
    )
    return select(
        *c.primary_key,
        channel,
        member_text(member(c.c.checkpoint, text_literal("channel_versions")), channel),
        or_(_is_inline(c, channel), blob),
        func.coalesce(and_(is_marked, blob), _FALSE),
        written.correlate(c, sought),
    ).select_from(sought.join(c, same_namespace(c, sought)))


def _walk(*tables: Table) -> CTE:
    """The threads of some tables, in order, by a walk that jumps from one to the next in the indexes.

    Binds: `after`, the thread's id that they follow, and `limit`, how many; the last row may have no thread.
    """

    def following(thread_id: ColumnElement[str], walk: FromClause | None = None) -> ColumnElement[Any]:
        firsts = []
        for one in tables:
            ordered = select(one.c.thread_id).order_by(one.c.thread_id).limit(int_literal(1))
            first = ordered.where(one.c.thread_id > thread_id)
            firsts.append((first if walk is None else first.correlate(walk)).scalar_subquery())
        return firsts[0] if len(firsts) == 1 else func.least(*firsts, type_=Text())

    first = following(param("after"))
    walk = select(first.label("thread_id"), int_literal(1).label("place")).cte("walk", recursive=True)
    is_inside = and_(walk.c.thread_id.is_not(None), walk.c.place < param("limit", Integer))
    return walk.union_all(select(following(walk.c.thread_id, walk), walk.c.place + int_literal(1)).where(is_inside))


def _is_given(thread_id: ColumnElement[str]) -> ColumnElement[bool]:
    return thread_id == func.any(array_param("thread_ids"))


def _is_chosen(t: Tables) -> ColumnElement[bool]:
    run_id = member_text(t.checkpoints.c.metadata, text_literal("run_id"))
    return run_id == func.any(array_param("run_ids"))


def _names(document: ColumnElement[Any]) -> TableValuedAlias:
    """The names of a JSON object's members, as rows."""
    return func.jsonb_object_keys(document).table_valued(Column("channel", Text)).render_derived()


def _is_inline(c: FromClause, channel: ColumnElement[str]) -> ColumnElement[bool]:
    return func.coalesce(has_member(member(c.c.checkpoint, text_literal("channel_values")), channel), _FALSE)

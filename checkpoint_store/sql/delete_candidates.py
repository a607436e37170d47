"""The statements that find rows to delete, and those of them that other checkpoints need; no I/O."""

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
from checkpoint_store.sql.expressions import (
    FALSE,
    ONE,
    TRUE,
    ZERO,
    array_param,
    channel_values,
    channel_versions,
    few_rows_of_binds,
    has_member,
    in_threads,
    int_literal,
    is_value,
    key_types,
    member,
    member_text,
    param,
    same_checkpoint,
    same_namespace,
    text_literal,
)

_COUNTERS = text_literal("counters_since_delta_snapshot")
"""The member of a checkpoint's metadata in which LangGraph counts the updates of delta channels."""


def next_threads(t: Tables) -> Executable:
    """Select the threads that follow one, with their number of checkpoints, or NULL if there is nothing to delete.

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
    """Select the threads with pending writes that follow one. Binds: see `_walk`."""
    walk = _walk(t.checkpoint_writes)
    return select(walk.c.thread_id).where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def orphaned_writes(t: Tables) -> Executable:
    """Select the keys of checkpoints that do not exist but have pending writes.

    Binds: `thread_ids`, and `before`, an id that theirs are less than.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    keys = ("thread_id", "checkpoint_ns", "checkpoint_id")
    written = select(*[w.c[name] for name in keys])
    written = written.where(in_threads(w), w.c.checkpoint_id < param("before"))
    return written.except_(select(*c.primary_key).where(in_threads(c)))


def next_leftovers(t: Tables) -> Executable:
    """Select the threads with blobs, pages or a row of their own that follow one, and whether each is left over.

    Binds: see `_walk`; `before`, an id or NULL, as in `_is_leftover`.
    """
    walk = _walk(t.checkpoint_blobs, t.checkpoint_pages, t.checkpoint_threads)
    chosen = select(walk.c.thread_id, _is_leftover(t, walk, param("before")))
    return chosen.where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def leftover_threads(t: Tables) -> Executable:
    """Select those of some threads that are left over, of any age. Binds: `thread_ids`."""
    given = few_rows_of_binds("", thread_id=Text)
    return select(given.c.thread_id).where(_is_leftover(t, given, cast(null(), Text)))


def _is_leftover(t: Tables, of: FromClause, before: ColumnElement[str]) -> ColumnElement[bool]:
    """Return whether a thread has neither a checkpoint nor a write to one from an id on; or pages but no recipe."""
    c, w, b, p = t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs, t.checkpoint_pages

    def lacks(table: Table, *conditions: ColumnElement[bool]) -> ColumnElement[bool]:
        # A scalar subquery: for EXISTS the server might read the whole table.
        found = select(true()).where(table.c.thread_id == of.c.thread_id, *conditions).limit(ONE)
        return found.correlate(of).scalar_subquery().is_(None)

    is_alone = and_(lacks(c), lacks(w, w.c.checkpoint_id >= before))
    return and_(_sees_all(t), or_(is_alone, and_(~lacks(p), lacks(b, b.c.type == text_literal(PAGED)))))


def _sees_all(t: Tables) -> ColumnElement[bool]:
    """Return whether all rows are visible: no policy hides any, and no backup is being restored, table by table."""
    names = [qualified(one.name, t.schema).replace("'", "''") for one in t.all]
    hides = [func.row_security_active(text_literal(name), type_=Boolean) for name in names]
    texts = [column(name, Text) for name in ("application_name", "state")]
    a = func.pg_stat_get_activity(cast(null(), Integer)).table_valued("datid", "pid", *texts)
    d = table("pg_database", column("oid"), column("datname"), schema="pg_catalog")
    here = select(d.c.oid).where(d.c.datname == func.current_database()).scalar_subquery()
    # psql restores a dump in SQL while it is not idle; the last one is the first copy of a logical subscription.
    restores = or_(
        a.c.application_name == text_literal("pg_restore"),
        and_(a.c.application_name == text_literal("psql"), a.c.state.is_distinct_from(text_literal("idle"))),
        a.c.application_name.regexp_match(text_literal("^pg_[0-9]+_sync_")),
    )
    others = select(true()).where(a.c.datid == here, a.c.pid != func.pg_backend_pid(), restores)
    return and_(~or_(*hides), others.limit(ONE).scalar_subquery().is_(None))


def blob_namespaces(t: Tables) -> Executable:
    """Select the namespaces in which some threads have blobs. Binds: `thread_ids`."""
    b = t.checkpoint_blobs
    return select(b.c.thread_id, b.c.checkpoint_ns).where(in_threads(b)).distinct()


def checkpoint_counts(t: Tables) -> Executable:
    """Select those of some threads that have checkpoints, and their number. Binds: `thread_ids`."""
    c = t.checkpoints
    return select(c.c.thread_id, func.count()).where(in_threads(c)).group_by(c.c.thread_id)


def threads_of_runs(t: Tables) -> Executable:
    """Select the threads in which some runs have stored checkpoints, and their number. Binds: `run_ids`."""
    c = t.checkpoints.c
    # The condition that it is not NULL is that of the partial index.
    is_theirs = and_(_is_chosen(t), member_text(c.metadata, text_literal("run_id")).is_not(None))
    return select(c.thread_id, func.count()).where(is_theirs).group_by(c.thread_id)


def candidates(t: Tables) -> Executable:
    """Select the checkpoints of threads as `deletion_plan.Node` has them, by namespace, the oldest first.

    Binds: `thread_ids`, `run_ids`.
    """
    c = t.checkpoints.c
    is_call = func.strpos(c.checkpoint_ns, text_literal(":"), type_=Integer) > ZERO
    counters = _names(member(c.metadata, _COUNTERS))
    counted = select(func.array_agg(counters.c.channel)).correlate(t.checkpoints).scalar_subquery()
    return (
        select(
            c.thread_id,
            c.checkpoint_ns,
            c.checkpoint_id,
            c.parent_checkpoint_id,
            func.coalesce(_is_chosen(t), FALSE),
            case((is_call, cast(member(c.metadata, text_literal("parents")), Text))),
            case((has_member(c.metadata, _COUNTERS), counted)),
        )
        .where(in_threads(t.checkpoints))
        .order_by(c.thread_id, c.checkpoint_ns, c.checkpoint_id)
    )


def channels_without_value(t: Tables) -> Executable:
    """Select some checkpoints, whether they are older than format 4, and their channels without value, or NULL.

    These are the channels that a checkpoint has a version of, or that its parent's tasks wrote to, but no value.
    LangGraph's internal channels, which only trigger nodes, are left out: there are too many of them.

    Binds: the checkpoints' keys as arrays, `node_thread_ids`, `node_checkpoint_nss`, `node_checkpoint_ids`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    node = few_rows_of_binds("node_", **key_types(c))
    versions = _names(channel_versions(c))
    written = select(w.c.channel).where(same_namespace(w, c), w.c.checkpoint_id == c.c.parent_checkpoint_id)
    channel = union(select(versions.c.channel).correlate(c), written.correlate(c)).subquery("channels").c.channel
    is_internal = or_(
        func.starts_with(channel, text_literal("__"), type_=Boolean),
        func.starts_with(channel, text_literal("branch:"), type_=Boolean),
    )
    # By key, as in `delta_history`: for EXISTS all blobs of the thread would be read, anew for each checkpoint.
    blob = select(TRUE).where(is_value(t.checkpoint_blobs, c, channel)).limit(ONE)
    blob = blob.correlate_except(t.checkpoint_blobs)
    has_value = or_(_is_inline(c, channel), func.coalesce(blob.scalar_subquery(), FALSE))
    bare = select(func.array_agg(channel)).where(~is_internal, ~has_value).correlate(c)
    is_old = cast(member_text(c.c.checkpoint, text_literal("v")), Numeric) < int_literal(4)
    return select(*c.primary_key, func.coalesce(is_old, FALSE), bare.scalar_subquery()).select_from(
        node.join(c, same_checkpoint(c, node))
    )


def traces(t: Tables) -> Executable:
    """Select the traces of some channels at each checkpoint of their namespaces, as `deletion_plan.Trace` has them.

    Binds: parallel arrays, `sought_thread_ids`, `sought_checkpoint_nss`, `sought_channels`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    sought = few_rows_of_binds("sought_", thread_id=Text, checkpoint_ns=Text, channel=Text)
    channel = sought.c.channel
    written = exists().where(same_checkpoint(w, c), w.c.channel == channel)
    # This is for all checkpoints at once, for which the server may well hash the blobs.
    blob = exists().where(is_value(t.checkpoint_blobs, c, channel)).correlate_except(t.checkpoint_blobs)
    # Beside the blob of a snapshot the inline value is true; beside other blobs there is none.
    is_marked = member(channel_values(c), channel) == literal_column("'true'::jsonb")
    return select(
        *c.primary_key,
        channel,
        member_text(channel_versions(c), channel),
        or_(_is_inline(c, channel), blob),
        func.coalesce(and_(is_marked, blob), FALSE),
        written.correlate(c, sought),
    ).select_from(sought.join(c, same_namespace(c, sought)))


def _walk(*tables: Table) -> CTE:
    """Return the threads of some tables, in order, by a walk that jumps from one to the next in the indexes.

    The last row may have no thread. Binds: `after`, the id of the thread that they follow, and `limit`.
    """

    def following(thread_id: ColumnElement[str], walk: FromClause | None = None) -> ColumnElement[Any]:
        firsts = []
        for one in tables:
            ordered = select(one.c.thread_id).order_by(one.c.thread_id).limit(ONE)
            first = ordered.where(one.c.thread_id > thread_id)
            firsts.append((first if walk is None else first.correlate(walk)).scalar_subquery())
        return firsts[0] if len(firsts) == 1 else func.least(*firsts, type_=Text())

    first = following(param("after"))
    walk = select(first.label("thread_id"), ONE.label("place")).cte("walk", recursive=True)
    is_inside = and_(walk.c.thread_id.is_not(None), walk.c.place < param("limit", Integer))
    return walk.union_all(select(following(walk.c.thread_id, walk), walk.c.place + ONE).where(is_inside))


def _is_chosen(t: Tables) -> ColumnElement[bool]:
    run_id = member_text(t.checkpoints.c.metadata, text_literal("run_id"))
    return run_id == func.any(array_param("run_ids"))


def _names(document: ColumnElement[Any]) -> TableValuedAlias:
    """Return the names of a JSON object's members, as rows."""
    return func.jsonb_object_keys(document).table_valued(Column("channel", Text)).render_derived()


def _is_inline(c: FromClause, channel: ColumnElement[str]) -> ColumnElement[bool]:
    return func.coalesce(has_member(channel_values(c), channel), FALSE)

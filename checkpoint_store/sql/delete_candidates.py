"""The statements that find rows to delete, and those of them that other checkpoints need; no I/O."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import PAGED, Tables, qualified
from checkpoint_store.sql import expressions as ex

_COUNTERS = ex.text_literal("counters_since_delta_snapshot")
"""The member of a checkpoint's metadata in which LangGraph counts the updates of delta channels."""


def next_threads(t: Tables) -> sa.Executable:
    """Select the threads that follow one, with their number of checkpoints, or NULL if there is nothing to delete.

    Binds: see `_walk`; `keep` and `before` as in `deletion_plan.Rule`.
    """
    c = t.checkpoints
    chosen = sa.select(sa.func.count().label("count"), sa.func.min(c.c.checkpoint_id).label("oldest"))
    if ex.is_distributed(c):
        following = chosen.add_columns(c.c.thread_id).where(c.c.thread_id > ex.param("after"))
        namespace = following.group_by(c.c.thread_id, c.c.checkpoint_ns).subquery("namespace")
        size = sa.case((_is_worth_a_look(namespace), _total(namespace)))
        return _page(sa.select(namespace.c.thread_id, size).group_by(namespace.c.thread_id), namespace.c.thread_id)
    walk = _walk(c)
    chosen = chosen.where(c.c.thread_id == walk.c.thread_id).group_by(c.c.checkpoint_ns).correlate(walk)
    namespace = chosen.subquery("namespace")
    rows = sa.select(_total(namespace).label("count")).having(_is_worth_a_look(namespace)).lateral("size")
    found = sa.select(walk.c.thread_id, rows.c.count).select_from(walk.outerjoin(rows, sa.true()))
    return found.where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def _is_worth_a_look(namespace: sa.FromClause) -> sa.ColumnElement[bool]:
    before = ex.param("before")
    is_old = sa.or_(before.is_(None), namespace.c.oldest < before)
    return sa.func.bool_or(sa.and_(namespace.c.count > ex.param("keep", sa.Integer), is_old))


def _total(namespace: sa.FromClause) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.sum(namespace.c.count), sa.BigInteger)


def thread_count(t: Tables) -> sa.Executable:
    """Count the threads that have checkpoints. Binds: `after` and `limit`, see `_walk`."""
    c = t.checkpoints
    if ex.is_distributed(c):
        threads = sa.select(c.c.thread_id).where(c.c.thread_id > ex.param("after")).group_by(c.c.thread_id).subquery()
        return sa.select(sa.func.count()).select_from(threads)
    return sa.select(sa.func.count(_walk(c).c.thread_id))


def next_writers(t: Tables) -> sa.Executable:
    """Select the threads with pending writes that follow one. Binds: see `_walk`."""
    if ex.is_distributed(t.checkpoint_writes):
        return _following(t.checkpoint_writes)
    walk = _walk(t.checkpoint_writes)
    return sa.select(walk.c.thread_id).where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def orphaned_writes(t: Tables) -> sa.Executable:
    """Select the keys of checkpoints that do not exist but have pending writes.

    Binds: `thread_ids`, and `before`, an id that theirs are less than.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    keys = ("thread_id", "checkpoint_ns", "checkpoint_id")
    written = sa.select(*[w.c[name] for name in keys])
    written = written.where(ex.among_threads(w), w.c.checkpoint_id < ex.param("before"))
    if ex.is_distributed(w):
        # Citus pushes no EXCEPT down without a thread, but this.
        is_it = sa.and_(*[w.c[name] == c.c[name] for name in keys])
        return written.distinct().select_from(w.outerjoin(c, is_it)).where(c.c.thread_id.is_(None))
    return written.except_(sa.select(*c.primary_key).where(ex.among_threads(c)))


def next_leftovers(t: Tables) -> sa.Executable:
    """Select the threads with blobs, pages or a row of their own that follow one, and whether each is left over.

    Of distributed tables only the threads: `leftover_threads` looks at them.

    Binds: see `_walk`; `before`, an id or NULL, as in `_is_leftover`.
    """
    tables = (t.checkpoint_blobs, t.checkpoint_pages, t.checkpoint_threads)
    if ex.is_distributed(t.checkpoint_blobs):
        owners = sa.union(*[_following(table) for table in tables]).subquery("owners")
        return _page(sa.select(owners.c.thread_id), owners.c.thread_id)
    walk = _walk(*tables)
    chosen = sa.select(walk.c.thread_id, _is_leftover(t, walk, ex.param("before")))
    return chosen.where(walk.c.thread_id.is_not(None)).order_by(walk.c.place)


def leftover_threads(t: Tables) -> sa.Executable:
    """Select those of some threads that are left over, of any age. Binds: `thread_ids`.

    Of distributed tables it takes `before`, an id or NULL, as in `_is_leftover`, and leaves `sees_all` to the caller.
    """
    if ex.is_distributed(t.checkpoints):
        return _leftovers_by_kind(t)
    given = ex.few_rows_of_binds("", thread_id=sa.Text)
    is_leftover = _is_leftover(t, given, sa.cast(sa.null(), sa.Text))
    return sa.select(given.c.thread_id).where(is_leftover)


def sees_all(t: Tables) -> sa.Executable:
    """Select whether all rows are visible, see `_sees_all`."""
    return sa.select(_sees_all(t))


def _leftovers_by_kind(t: Tables) -> sa.Select[Any]:
    """Select those of some threads that are left over, by the kinds of rows that each has: on all shards at once."""
    c, w, b, p = t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs, t.checkpoint_pages

    def those_with(kind: str, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
        found = sa.select(table.c.thread_id, ex.text_literal(kind).label("kind")).where(
            ex.among_threads(table), *conditions
        )
        return found.group_by(table.c.thread_id)

    kinds = sa.union_all(
        those_with("checkpoint", c),
        those_with("write", w, w.c.checkpoint_id >= ex.param("before")),
        those_with("recipe", b, b.c.type == ex.text_literal(PAGED)),
        those_with("page", p),
        those_with("blob", b),
        those_with("row", t.checkpoint_threads),
    ).subquery("kinds")

    def has(*names: str) -> sa.ColumnElement[bool]:
        return sa.func.bool_or(kinds.c.kind.in_([ex.text_literal(name) for name in names]), type_=sa.Boolean)

    is_leftover = sa.or_(~has("checkpoint", "write"), sa.and_(has("page"), ~has("recipe")))
    return sa.select(kinds.c.thread_id).group_by(kinds.c.thread_id).having(is_leftover)


def _is_leftover(t: Tables, of: sa.FromClause, before: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return whether a thread has neither a checkpoint nor a write to one from an id on; or pages but no recipe."""
    c, w, b, p = t.checkpoints, t.checkpoint_writes, t.checkpoint_blobs, t.checkpoint_pages

    def lacks(table: sa.Table, *conditions: sa.ColumnElement[bool]) -> sa.ColumnElement[bool]:
        # A scalar subquery: for EXISTS the server might read the whole table.
        found = sa.select(sa.true()).where(table.c.thread_id == of.c.thread_id, *conditions).limit(ex.ONE)
        return found.correlate(of).scalar_subquery().is_(None)

    is_paged = b.c.type == ex.text_literal(PAGED)
    is_alone = sa.and_(lacks(c), lacks(w, w.c.checkpoint_id >= before))
    has_only_pages = sa.and_(~lacks(p), lacks(b, is_paged))
    return sa.and_(_sees_all(t), sa.or_(is_alone, has_only_pages))


def _sees_all(t: Tables) -> sa.ColumnElement[bool]:
    """Return whether all rows are visible: no policy hides any, and no backup is being restored, table by table."""
    names = [qualified(one.name, t.schema).replace("'", "''") for one in t.all]
    hides = [sa.func.row_security_active(ex.text_literal(name), type_=sa.Boolean) for name in names]
    columns = ("datid", "pid", sa.column("application_name", sa.Text), sa.column("state", sa.Text))
    a = sa.func.pg_stat_get_activity(sa.cast(sa.null(), sa.Integer)).table_valued(*columns)
    d = sa.table("pg_database", sa.column("oid"), sa.column("datname"), schema="pg_catalog")
    here = sa.select(d.c.oid).where(d.c.datname == sa.func.current_database()).scalar_subquery()
    # psql restores a dump in SQL while it is not idle; the last one is the first copy of a logical subscription.
    restores = sa.or_(
        a.c.application_name == ex.text_literal("pg_restore"),
        sa.and_(a.c.application_name == ex.text_literal("psql"), a.c.state.is_distinct_from(ex.text_literal("idle"))),
        a.c.application_name.regexp_match(ex.text_literal("^pg_[0-9]+_sync_")),
    )
    others = sa.select(sa.true()).where(a.c.datid == here, a.c.pid != sa.func.pg_backend_pid(), restores)
    return sa.and_(~sa.or_(*hides), others.limit(ex.ONE).scalar_subquery().is_(None))


def blob_namespaces(t: Tables) -> sa.Executable:
    """Select the namespaces in which some threads have blobs. Binds: `thread_ids`."""
    b = t.checkpoint_blobs
    return sa.select(b.c.thread_id, b.c.checkpoint_ns).where(ex.in_threads(b)).distinct()


def checkpoint_counts(t: Tables) -> sa.Executable:
    """Select those of some threads that have checkpoints, and their number. Binds: `thread_ids`."""
    c = t.checkpoints
    return sa.select(c.c.thread_id, sa.func.count()).where(ex.among_threads(c)).group_by(c.c.thread_id)


def threads_of_runs(t: Tables) -> sa.Executable:
    """Select the threads in which some runs have stored checkpoints, and their number. Binds: `run_ids`."""
    c = t.checkpoints.c
    # The condition that it is not NULL is that of the partial index.
    is_theirs = sa.and_(_is_chosen(t), ex.run_id(t.checkpoints).is_not(None))
    return sa.select(c.thread_id, sa.func.count()).where(is_theirs).group_by(c.thread_id)


def expired_threads(t: Tables) -> sa.Executable:
    """Select those of some threads that have expired, as `storage.expiry.ExpiredThread` has them.

    The first rule whose filter the metadata of a thread's newest root checkpoint contains decides. A thread that has a
    checkpoint without a time in its id does not expire.

    Binds: `thread_ids`, and parallel arrays, one row for each rule: `filters` (JSON text, or NULL for any thread), and
    ids that no checkpoint of an expired thread (`idles`), or not its first one (`ages`) and no other one (`quiets`),
    may reach.
    """
    c, w, root = t.checkpoints, t.checkpoint_writes, t.checkpoints.alias("root")
    given = ex.few_rows_of_binds("", thread_id=sa.Text)
    roots = sa.select(root.c.checkpoint_id, root.c.metadata).order_by(root.c.checkpoint_id.desc()).limit(ex.ONE)
    roots = roots.where(ex.same_thread(root, given), root.c.checkpoint_ns == ex.text_literal(""))
    newest = roots.correlate(given).lateral("newest")
    rule = _first_rule(newest).lateral("rule")
    seen = _ages(c, given, newest, rule).lateral("seen")
    written = sa.select(sa.func.count()).where(ex.same_thread(w, given)).correlate(given).scalar_subquery()
    is_too_old = sa.and_(seen.c.oldest < rule.c.age, seen.c.newest < rule.c.quiet)
    found = sa.select(
        given.c.thread_id,
        newest.c.checkpoint_id,
        sa.cast(newest.c.metadata, sa.Text),
        seen.c.count,
        seen.c.oldest,
        seen.c.newest,
        written,
    )
    rows = given.outerjoin(newest, sa.true()).join(rule, sa.true()).join(seen, sa.true())
    is_expired = sa.and_(seen.c.is_timed, sa.or_(seen.c.newest < rule.c.idle, is_too_old))
    return found.select_from(rows).where(is_expired).order_by(given.c.thread_id)


def _first_rule(newest: sa.FromClause) -> sa.Select[Any]:
    """Select the first rule whose filter the metadata of a thread's newest root checkpoint contains."""
    names = ("filter", "idle", "age", "quiet")
    rows = sa.func.unnest(*[ex.array_param(f"{name}s") for name in names])
    rule = rows.table_valued(*[sa.Column(name, sa.Text) for name in names], with_ordinality="place")
    rule = rule.render_derived("rules")
    contained = newest.c.metadata.contains(sa.cast(rule.c.filter, pg.JSONB))
    found = sa.select(rule).where(sa.or_(rule.c.filter.is_(None), contained))
    return found.order_by(rule.c.place).limit(ex.ONE).correlate(newest)


def _ages(c: sa.Table, given: sa.FromClause, newest: sa.FromClause, rule: sa.FromClause) -> sa.Select[Any]:
    """Select the number of a thread's checkpoints, the oldest, the newest, and whether all have a time in their ids.

    Nothing is read of a thread whose newest root checkpoint alone shows that it has not expired.
    """
    one, root_id = c.c.checkpoint_id.collate("C"), newest.c.checkpoint_id
    may_be = sa.or_(root_id.is_(None), root_id.collate("C") < sa.func.greatest(rule.c.idle, rule.c.quiet))
    columns: dict[str, sa.ColumnElement[Any]] = {
        "count": sa.func.count(),
        "oldest": sa.func.min(one),
        "newest": sa.func.max(one),
        "is_timed": sa.func.bool_and(_has_time(one), type_=sa.Boolean),
    }
    found = sa.select(*[column.label(name) for name, column in columns.items()])
    return found.where(ex.same_thread(c, given), may_be).correlate(given, newest, rule)


def _has_time(checkpoint_id: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return whether an id has a time in it, as `checkpoint_time.is_older` asks; a regular expression takes ages."""
    digits = [ex.text_literal(text) for text in ("0123456789abcdef", "")]
    variant = sa.func.substr(checkpoint_id, ex.int_literal(20), ex.ONE, type_=sa.Text)
    return sa.and_(
        checkpoint_id.like(ex.text_literal("________-____-6___-____-____________")),
        sa.func.translate(checkpoint_id, *digits, type_=sa.Text) == ex.text_literal("----"),
        variant.between(ex.text_literal("8"), ex.text_literal("b")),
    )


def candidates(t: Tables) -> sa.Executable:
    """Select the checkpoints of threads as `deletion_plan.Node` has them, by namespace, the oldest first.

    Binds: `thread_ids`, `run_ids`.
    """
    c, is_chosen = t.checkpoints.c, _is_chosen(t)
    is_call = sa.func.strpos(c.checkpoint_ns, ex.text_literal(":"), type_=sa.Integer) > ex.ZERO
    counters = ex.names_of(ex.member(c.metadata, _COUNTERS))
    counted = sa.select(sa.func.array_agg(counters.c.channel)).correlate(t.checkpoints).scalar_subquery()
    return (
        sa.select(
            c.thread_id,
            c.checkpoint_ns,
            c.checkpoint_id,
            c.parent_checkpoint_id,
            sa.func.coalesce(is_chosen, ex.FALSE),
            sa.case((is_call, sa.cast(ex.member(c.metadata, ex.text_literal("parents")), sa.Text))),
            sa.case((ex.has_member(c.metadata, _COUNTERS), counted)),
        )
        .where(ex.in_threads(t.checkpoints))
        .order_by(c.thread_id, c.checkpoint_ns, c.checkpoint_id)
    )


def channels_without_value(t: Tables) -> sa.Executable:
    """Select some checkpoints, whether they are older than format 4, and their channels without value, or NULL.

    These are the channels that a checkpoint has a version of, or that its parent's tasks wrote to, but no value.
    LangGraph's internal channels, which only trigger nodes, are left out: there are too many of them.

    Binds: the checkpoints' keys as arrays, `node_thread_ids`, `node_checkpoint_nss`, `node_checkpoint_ids`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    node = ex.few_rows_of_binds("node_", **ex.key_types(c))
    versions = ex.names_of(ex.channel_versions(c))
    written = sa.select(w.c.channel).where(ex.same_namespace(w, c), w.c.checkpoint_id == c.c.parent_checkpoint_id)
    channel = sa.union(sa.select(versions.c.channel).correlate(c), written.correlate(c)).subquery("channels").c.channel
    is_internal = sa.or_(
        sa.func.starts_with(channel, ex.text_literal("__"), type_=sa.Boolean),
        sa.func.starts_with(channel, ex.text_literal("branch:"), type_=sa.Boolean),
    )
    # By key, as in `delta_history`: for EXISTS all blobs of the thread would be read, anew for each checkpoint.
    blob = sa.select(ex.TRUE).where(ex.is_value(t.checkpoint_blobs, c, channel)).limit(ex.ONE)
    blob = blob.correlate_except(t.checkpoint_blobs)
    has_value = sa.or_(ex.is_inline(c, channel), sa.func.coalesce(blob.scalar_subquery(), ex.FALSE))
    bare = sa.select(sa.func.array_agg(channel)).where(~is_internal, ~has_value).correlate(c)
    is_old = sa.cast(ex.member_text(c.c.checkpoint, ex.text_literal("v")), sa.Numeric) < ex.int_literal(4)
    return sa.select(*c.primary_key, sa.func.coalesce(is_old, ex.FALSE), bare.scalar_subquery()).select_from(
        node.join(c, ex.same_checkpoint(c, node))
    )


def traces(t: Tables) -> sa.Executable:
    """Select the traces of some channels at each checkpoint of their namespaces, as `deletion_plan.Trace` has them.

    Binds: parallel arrays, `sought_thread_ids`, `sought_checkpoint_nss`, `sought_channels`.
    """
    c, w = t.checkpoints, t.checkpoint_writes
    sought = ex.few_rows_of_binds("sought_", thread_id=sa.Text, checkpoint_ns=sa.Text, channel=sa.Text)
    channel = sought.c.channel
    written = sa.exists().where(ex.same_checkpoint(w, c), w.c.channel == channel)
    # This is for all checkpoints at once, for which the server may well hash the blobs.
    blob = sa.exists().where(ex.is_value(t.checkpoint_blobs, c, channel)).correlate_except(t.checkpoint_blobs)
    # Beside the blob of a snapshot the inline value is true; beside other blobs there is none.
    is_marked = ex.member(ex.channel_values(c), channel) == sa.literal_column("'true'::jsonb")
    return sa.select(
        *c.primary_key,
        channel,
        ex.member_text(ex.channel_versions(c), channel),
        sa.or_(ex.is_inline(c, channel), blob),
        sa.func.coalesce(sa.and_(is_marked, blob), ex.FALSE),
        written.correlate(c, sought),
    ).select_from(sought.join(c, ex.same_namespace(c, sought)))


def _walk(*tables: sa.Table) -> sa.CTE:
    """Return the threads of some tables, in order, by a walk that jumps from one to the next in the indexes.

    The last row may have no thread. Binds: `after`, the id of the thread that they follow, and `limit`.
    """

    def following(thread_id: sa.ColumnElement[str], walk: sa.FromClause | None = None) -> sa.ColumnElement[Any]:
        firsts = []
        for one in tables:
            ordered = sa.select(one.c.thread_id).order_by(one.c.thread_id).limit(ex.ONE)
            first = ordered.where(one.c.thread_id > thread_id)
            firsts.append((first if walk is None else first.correlate(walk)).scalar_subquery())
        return firsts[0] if len(firsts) == 1 else sa.func.least(*firsts, type_=sa.Text())

    first = following(ex.param("after"))
    walk = sa.select(first.label("thread_id"), ex.ONE.label("place")).cte("walk", recursive=True)
    is_inside = sa.and_(walk.c.thread_id.is_not(None), walk.c.place < ex.param("limit", sa.Integer))
    return walk.union_all(sa.select(following(walk.c.thread_id, walk), walk.c.place + ex.ONE).where(is_inside))


def _following(table: sa.Table) -> sa.Select[Any]:
    """Select the threads of a distributed table, in order, that follow one. Binds: see `_walk`."""
    threads = sa.select(table.c.thread_id).where(table.c.thread_id > ex.param("after")).group_by(table.c.thread_id)
    return _page(threads, table.c.thread_id)


def _page(threads: sa.Select[Any], thread_id: sa.ColumnElement[str]) -> sa.Select[Any]:
    return threads.order_by(thread_id).limit(ex.param("limit", sa.Integer))


def _is_chosen(t: Tables) -> sa.ColumnElement[bool]:
    return ex.run_id(t.checkpoints) == sa.func.any(ex.array_param("run_ids"))

"""The statements that delete checkpoints with all rows that only they need, or count these rows; no I/O.

They are executed in one transaction and in the order in which `write.store` locks rows: writes, checkpoints, blobs,
pages. Rows that nothing refers to are found by EXCEPT: a planner that misjudges the size of a thread would join two
sets of its rows in quadratic time.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql import expressions as ex


def lock_threads(t: Tables) -> sa.Executable:
    """Wait until no transaction stores pages of some threads, and keep others from it until the commit.

    Returns those of the threads that have pages. Binds: `thread_ids`.
    """
    threads = t.checkpoint_threads
    return sa.select(threads.c.thread_id).where(ex.in_threads(threads)).order_by(threads.c.thread_id).with_for_update()


def insert_thread_rows(t: Tables) -> sa.Executable:
    """Insert a row for those of some threads that have no pages, so that `lock_threads` has one to lock.

    Otherwise pages could be stored after the lock is taken, and others build on them while they are deleted. The row is
    deleted in the same transaction. Binds: `thread_ids`.
    """
    threads = t.checkpoint_threads
    insertion = pg.insert(threads)
    if ex.is_distributed(threads):
        insertion = insertion.values(thread_id=ex.param("thread_id"), epoch=ex.ZERO)
    else:
        thread_id = sa.func.unnest(ex.array_param("thread_ids")).column_valued("thread_id")
        rows = sa.select(thread_id, ex.ZERO).order_by(thread_id)
        insertion = insertion.from_select(["thread_id", "epoch"], rows)
    return insertion.on_conflict_do_nothing()


def delete_checkpoints(t: Tables) -> sa.Executable:
    """Delete checkpoints and their writes. Binds: see `_namespaces`.

    Returns two arrays of a number of rows and their bytes: of writes, and of checkpoints.
    """
    w, c, span = t.checkpoint_writes, t.checkpoints, _spans()
    writes = sa.delete(w).where(_is_deleted(w, span)).returning(_size(w.c.blob)).cte("gone_writes")
    checkpoints = sa.delete(c).where(_is_deleted(c, span)).returning(_json_size(t)).cte("gone_checkpoints")
    return _counts(writes, checkpoints)


def count_checkpoints(t: Tables) -> sa.Executable:
    """Count the rows that `delete_checkpoints` would delete. Binds and result: the same."""
    w, c, span = t.checkpoint_writes, t.checkpoints, _spans()
    writes = sa.select(_size(w.c.blob)).select_from(span.join(w, _is_deleted(w, span))).cte("writes")
    checkpoints = sa.select(_json_size(t)).select_from(span.join(c, _is_deleted(c, span))).cte("checkpoints")
    return _counts(writes, checkpoints)


def parents(t: Tables) -> sa.Executable:
    """Select checkpoints with their parents. Binds: see `_namespaces`."""
    c, span = t.checkpoints, _spans()
    return sa.select(*c.primary_key, c.c.parent_checkpoint_id).select_from(span.join(c, _is_deleted(c, span)))


def children(t: Tables) -> sa.Executable:
    """Select the keys of those of some checkpoints that have children, and the children's ids as an array.

    Binds: see `_namespaces`.
    """
    c, namespace = t.checkpoints, _namespaces()
    parent_id = c.c.parent_checkpoint_id
    lines = sa.union_all(
        sa.select(c.c.thread_id, c.c.checkpoint_ns, parent_id.label("checkpoint_id"), c.c.checkpoint_id.label("child"))
        .select_from(namespace.join(c, ex.same_namespace(c, namespace)))
        .where(parent_id.is_not(None)),
        _deleted().add_columns(sa.cast(sa.null(), sa.Text)),
    ).subquery("lines")
    of = [lines.c.thread_id, lines.c.checkpoint_ns, lines.c.checkpoint_id]
    found = sa.func.array_agg(lines.c.child).filter(lines.c.child.is_not(None))
    is_sought = sa.and_(sa.func.bool_or(lines.c.child.is_(None)), sa.func.count(lines.c.child) > ex.ZERO)
    return sa.select(*of, found).group_by(*of).having(is_sought)


def reparent(t: Tables) -> sa.Executable:
    """Give checkpoints another parent, or none if that parent does not exist.

    Binds: parallel arrays, `reparented_thread_ids`, `reparented_checkpoint_nss`, `reparented_checkpoint_ids`,
    `reparented_parent_ids`.
    """
    c, p = t.checkpoints, t.checkpoints.alias("parent")
    new = ex.few_rows_of_binds("reparented_", **ex.key_types(c), parent_id=sa.Text)
    parent = sa.select(p.c.checkpoint_id).where(ex.same_namespace(p, new), p.c.checkpoint_id == new.c.parent_id)
    changed = sa.update(c).values(parent_checkpoint_id=parent.correlate(new).scalar_subquery())
    return changed.where(ex.same_checkpoint(c, new))


def next_blob(t: Tables) -> sa.Executable:
    """Select the channel and version of the last of the next blobs of a namespace: where a range of them ends.

    Binds: `thread_id`, `checkpoint_ns`, `after_channel`, `after_version`, and `limit`, the number of blobs.
    """
    b = t.checkpoint_blobs
    order = [b.c.channel, b.c.version]
    following = sa.select(*order).where(ex.in_namespace(b), sa.tuple_(*order) > _place("after")).order_by(*order)
    these = following.limit(ex.param("limit", sa.Integer)).subquery("these")
    return sa.select(these).order_by(these.c.channel.desc(), these.c.version.desc()).limit(ex.ONE)


def mark_dead_entries(t: Tables) -> sa.Executable:
    """Count the checkpoints of a namespace by the index: that marks the index entries of deleted rows as dead.

    Otherwise they stay until the next VACUUM, and each read goes through them. Binds: `thread_id`, `checkpoint_ns`.
    """
    return sa.select(sa.func.count()).select_from(_here_in_order(t))


def lock_blobs(t: Tables, *, in_range: bool = False) -> sa.Executable:
    """Lock the blobs that no checkpoint of their namespace refers to. Returns their number.

    A transaction that refers to one of them because it was there has it locked (see `write.keeping`), or waits for us.
    The statement after this one sees whether they are still unused.

    Binds: see `_namespaces`; for a range of one namespace, `thread_id`, `checkpoint_ns`, and the range's bounds,
    `after_channel`, `after_version`, `upto_channel`, `upto_version`.
    """
    b = t.checkpoint_blobs
    order = [column.collate("C") for column in b.primary_key]
    dead = _dead_blobs(t, in_range=in_range)
    locked = (
        sa.select(b.c.thread_id).select_from(dead.join(b, ex.same_blob(b, dead))).order_by(*order).with_for_update(of=b)
    )
    return sa.select(sa.func.count()).select_from(locked.subquery("locked"))


def delete_blobs(t: Tables, *, in_range: bool = False) -> sa.Executable:
    """Delete those of the blobs that `lock_blobs` has locked to which no checkpoint refers now. Binds: the same.

    Returns their number and their bytes.
    """
    b, dead = t.checkpoint_blobs, _dead_blobs(t, in_range=in_range)
    gone = sa.delete(b).where(ex.same_blob(b, dead)).returning(_size(b.c.blob)).cte("gone")
    return _count(gone)


def count_blobs(t: Tables) -> sa.Executable:
    """Count the blobs that `delete_blobs` would delete once some checkpoints are deleted. Binds: see `_namespaces`."""
    b, dead = t.checkpoint_blobs, _dead_blobs(t, without_deleted=True)
    return _count(sa.select(_size(b.c.blob)).select_from(dead.join(b, ex.same_blob(b, dead))).cte("gone"))


def paged_threads(t: Tables) -> sa.Executable:
    """Select those of some threads that have pages. Binds: `thread_ids`."""
    threads = t.checkpoint_threads
    return sa.select(threads.c.thread_id).where(ex.in_threads(threads))


def delete_pages(t: Tables) -> sa.Executable:
    """Delete the pages of threads that no blob refers to, and begin another epoch. Binds: `thread_ids`.

    It has to be executed after `lock_threads`, in the same transaction: then its snapshot has everything that was
    stored before. Returns the number of pages and their bytes.
    """
    p, threads = t.checkpoint_pages, t.checkpoint_threads
    dead = _dead_pages(t, t.checkpoint_blobs)
    epoch = sa.update(threads).where(ex.in_threads(threads)).values(epoch=threads.c.epoch + ex.ONE)
    gone = sa.delete(p).where(_is_page(p, dead)).returning(_size(p.c.page)).cte("gone")
    return _count(gone).add_cte(epoch.cte("another_epoch"))


def count_pages(t: Tables) -> sa.Executable:
    """Count the pages that `delete_pages` would delete once some checkpoints are deleted.

    Binds: `thread_ids`, and see `_namespaces`.
    """
    b, p = t.checkpoint_blobs, t.checkpoint_pages
    dead, is_paged = _dead_blobs(t, without_deleted=True), b.c.type == ex.text_literal(PAGED)
    left = sa.select(*b.primary_key).where(ex.in_threads(b), is_paged).except_(sa.select(*dead.c)).cte("left_blobs")
    kept = sa.select(b).select_from(left.join(b, ex.same_blob(b, left))).where(is_paged).subquery("kept")
    pages = _dead_pages(t, kept)
    return sa.select(sa.func.count(), _sum(_size(p.c.page))).select_from(pages.join(p, _is_page(p, pages)))


def delete_thread_rows(t: Tables) -> sa.Executable:
    """Delete the rows of those of some threads that have no pages any longer. Binds: `thread_ids`."""
    threads, p = t.checkpoint_threads, t.checkpoint_pages
    has_pages = sa.exists().where(ex.same_thread(p, threads))
    return sa.delete(threads).where(ex.in_threads(threads), ~has_pages)


def delete_threads(t: Tables) -> sa.Executable:
    """Delete everything stored for some threads. Binds: `thread_ids`.

    Returns an array of a number of rows and their bytes for each of writes, checkpoints, blobs and pages.
    """
    w, c, b, p = t.checkpoint_writes, t.checkpoints, t.checkpoint_blobs, t.checkpoint_pages
    threads = t.checkpoint_threads
    sizes = [(w, _size(w.c.blob)), (c, _json_size(t)), (b, _size(b.c.blob)), (p, _size(p.c.page))]
    gone = [sa.delete(one).where(ex.in_threads(one)).returning(size).cte(f"gone_{one.name}") for one, size in sizes]
    return _counts(*gone).add_cte(sa.delete(threads).where(ex.in_threads(threads)).cte("gone_threads"))


def _namespaces() -> sa.TableValuedAlias:
    """Return the namespaces of the checkpoints to delete, as rows, each with its range in the array of all their ids.

    Binds: parallel arrays, `namespace_thread_ids`, `namespace_checkpoint_nss`, `namespace_firsts`, `namespace_lasts`;
    `checkpoint_ids`.
    """
    return ex.few_rows_of_binds(
        "namespace_", thread_id=sa.Text, checkpoint_ns=sa.Text, first=sa.Integer, last=sa.Integer
    )


def _namespaces_and_ids() -> tuple[sa.TableValuedAlias, sa.TableValuedAlias]:
    """Return the namespaces of the checkpoints to delete, and their ids as rows that belong to a namespace."""
    namespace = _namespaces()
    ids = sa.select(ex.array_param("checkpoint_ids")).scalar_subquery()
    return namespace, ex.rows_of(ids[slice(namespace.c.first, namespace.c.last)], "checkpoint_id")


def _spans() -> sa.FromClause:
    """Return the namespaces of the checkpoints to delete, with the least and the greatest of their ids."""
    namespace, ids = _namespaces_and_ids()
    count = sa.func.cardinality(ex.array_param("namespace_thread_ids"), type_=sa.Integer)
    least, greatest = [sa.select(end(ids.c.checkpoint_id)).scalar_subquery() for end in (sa.func.min, sa.func.max)]
    columns = [namespace.c.thread_id, namespace.c.checkpoint_ns, least.label("least"), greatest.label("greatest")]
    # With the LIMIT they are computed once, not for every row that is compared with them, and the planner expects one
    # namespace rather than ten, for which it would read the tables whole.
    return sa.select(*columns).limit(sa.select(count).scalar_subquery()).subquery("span")


def _is_deleted(table: sa.FromClause, span: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return the condition that a row belongs to a checkpoint to delete.

    The rows of a span are read, few of which stay as a rule. To look up each id in the index takes three times as long,
    and an array of ids may be compared one by one with each row.
    """
    # With IS TRUE it is not made a join, which may begin with the ids.
    is_sought = (
        sa.tuple_(table.c.thread_id, table.c.checkpoint_ns, table.c.checkpoint_id).in_(_deleted()).is_(sa.true())
    )
    return sa.and_(
        ex.same_namespace(table, span), table.c.checkpoint_id.between(span.c.least, span.c.greatest), is_sought
    )


def _deleted() -> sa.Select[Any]:
    """Select the keys of the checkpoints to delete."""
    namespace, ids = _namespaces_and_ids()
    one = ids.lateral("one")
    keys = [namespace.c.thread_id, namespace.c.checkpoint_ns, one.c.checkpoint_id]
    return sa.select(*keys).select_from(namespace.join(one, sa.true()))


def _is_page(pages: sa.FromClause, dead: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(ex.same_thread(pages, dead), pages.c.digest == dead.c.digest)


def _dead_blobs(t: Tables, *, without_deleted: bool = False, in_range: bool = False) -> sa.CTE:
    """Select the keys of the blobs that no checkpoint of their namespace refers to.

    With `without_deleted` the checkpoints to delete do not count; `in_range` is for a range of one namespace.
    """
    c: sa.FromClause = t.checkpoints
    b, namespace = t.checkpoint_blobs, _namespaces()
    left: sa.FromClause = namespace.join(c, ex.same_namespace(c, namespace))
    if without_deleted:
        keys = sa.select(*t.checkpoints.primary_key).select_from(left).except_(_deleted()).cte("left_checkpoints")
        left = keys.join(c, ex.same_checkpoint(c, keys))
    used = _used(c, left)
    stored = sa.select(*b.primary_key)
    if in_range:
        place = sa.tuple_(b.c.channel, b.c.version)
        stored = stored.where(ex.in_namespace(b), place > _place("after"), place <= _place("upto"))
        c = _here_in_order(t)
        used = _used(c, c)
    else:
        stored = stored.select_from(namespace.join(b, ex.same_namespace(b, namespace)))
    return stored.except_(used).cte("dead")


def _here_in_order(t: Tables) -> sa.FromClause:
    """Return the checkpoints of one namespace, read by the index: the table has all rows that are deleted."""
    c = t.checkpoints
    return sa.select(c).where(ex.in_namespace(c)).order_by(c.c.checkpoint_id).offset(ex.ZERO).subquery("here")


def _used(c: sa.FromClause, left: sa.FromClause) -> sa.Select[Any]:
    """Select the keys of the blobs that the remaining checkpoints refer to."""
    document = ex.channel_versions(c)
    versions = sa.func.jsonb_each_text(document).table_valued("key", "value")
    pairs = sa.select(versions.c.key, versions.c.value).correlate(c).lateral("pairs")
    return sa.select(c.c.thread_id, c.c.checkpoint_ns, *pairs.c).select_from(left.join(pairs, sa.true()))


def _dead_pages(t: Tables, b: sa.FromClause) -> sa.CTE:
    """Select the keys of the pages of some threads that none of their blobs refers to."""
    p = t.checkpoint_pages
    used = ex.digests_of(b).add_columns(b.c.thread_id).where(ex.in_threads(b), b.c.type == ex.text_literal(PAGED))
    keys = used.subquery("used").c
    stored = sa.select(p.c.thread_id, p.c.digest).where(ex.in_threads(p))
    return stored.except_(sa.select(keys.thread_id, keys.digest)).cte("dead_pages")


def _counts(*gone: sa.CTE) -> sa.Select[Any]:
    """Select the number of rows and the bytes of each; those that delete do it now, in this order."""
    counts: list[sa.ColumnElement[Any]] = [
        sa.select(pg.array([sa.func.count(), _sum(one.c.size)])).select_from(one).scalar_subquery() for one in gone
    ]
    return sa.select(*counts)


def _count(rows: sa.CTE) -> sa.Select[Any]:
    columns: list[sa.ColumnElement[Any]] = [sa.func.count(), _sum(rows.c.size)]
    return sa.select(*columns).select_from(rows)


def _place(name: str) -> sa.ColumnElement[Any]:
    return sa.tuple_(ex.param(f"{name}_channel"), ex.param(f"{name}_version"))


def _size(*columns: sa.Column[Any]) -> sa.ColumnElement[int]:
    """Return the number of bytes that values of a row occupy as they are stored, that is, compressed.

    Of distributed tables it is their length: Citus takes only immutable functions in RETURNING.
    """
    sizes = [sa.func.coalesce(_bytes_of(column), ex.ZERO) for column in columns]
    return sum(sizes[1:], start=sizes[0]).label("size")


def _bytes_of(column: sa.Column[Any]) -> sa.ColumnElement[int]:
    if not ex.is_distributed(column.table):
        return sa.func.pg_column_size(column, type_=sa.Integer)
    is_json = isinstance(column.type, pg.JSONB)
    return sa.func.octet_length(sa.cast(column, sa.Text) if is_json else column, type_=sa.Integer)


def _json_size(t: Tables) -> sa.ColumnElement[int]:
    return _size(t.checkpoints.c.checkpoint, t.checkpoints.c.metadata)


def _sum(size: sa.ColumnElement[int]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(size, type_=sa.BigInteger), ex.ZERO)

"""The statements that remove checkpoints of any threads with all that only they need, or count what they would; no I/O.

They are executed in one transaction and in the order in which `storing.store` locks rows: writes, checkpoints, blobs,
pages. What nothing refers to is found by EXCEPT: a planner that misjudges a thread would join two sets of its rows in
quadratic time.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    CTE,
    BigInteger,
    ColumnElement,
    Executable,
    FromClause,
    Integer,
    Select,
    Table,
    TableValuedAlias,
    Text,
    and_,
    cast,
    delete,
    exists,
    func,
    null,
    select,
    true,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import array, insert

from checkpoint_store.schema import PAGED, Tables
from checkpoint_store.sql.arrays import array_param, few_rows_of_binds, rows_of
from checkpoint_store.sql.expressions import digests_of, int_literal, member, param, same_blob, same_graph, text_literal


def lock_threads(t: Tables) -> Executable:
    """Wait until nobody stores pages of some threads, and keep others from it until the commit. Binds: `thread_ids`.

    Returns which of them have pages.
    """
    threads = t.checkpoint_threads
    return select(threads.c.thread_id).where(_is_given(threads)).order_by(threads.c.thread_id).with_for_update()


def claim_threads(t: Tables) -> Executable:
    """Give a row to those of some threads that have no pages, so that `lock_threads` has one to lock.

    Otherwise somebody could store pages after the lock was had, and others build on them while they are deleted. It is
    there until it is deleted in the same transaction. Binds: `thread_ids`.
    """
    threads = t.checkpoint_threads
    thread_id = func.unnest(array_param("thread_ids")).column_valued("thread_id")
    rows = select(thread_id, int_literal(0)).order_by(thread_id)
    return insert(threads).from_select(["thread_id", "epoch"], rows).on_conflict_do_nothing()


def delete_checkpoints(t: Tables) -> Executable:
    """Delete checkpoints and their writes. Binds: see `_graphs`.

    Returns how many rows and bytes, as arrays of two: of writes, and of checkpoints.
    """
    w, c, graph = t.checkpoint_writes, t.checkpoints, _spans()
    writes = delete(w).where(_is_victim(w, graph)).returning(_size(w.c.blob)).cte("gone_writes")
    checkpoints = delete(c).where(_is_victim(c, graph)).returning(_json_size(t)).cte("gone_checkpoints")
    return _counts(writes, checkpoints)


def count_checkpoints(t: Tables) -> Executable:
    """Count what `delete_checkpoints` would delete."""
    w, c, graph = t.checkpoint_writes, t.checkpoints, _spans()
    writes = select(_size(w.c.blob)).select_from(graph.join(w, _is_victim(w, graph))).cte("writes")
    checkpoints = select(_json_size(t)).select_from(graph.join(c, _is_victim(c, graph))).cte("checkpoints")
    return _counts(writes, checkpoints)


def parents(t: Tables) -> Executable:
    """Select checkpoints with their parents. Binds: see `_graphs`."""
    c, graph = t.checkpoints, _spans()
    return select(*c.primary_key, c.c.parent_checkpoint_id).select_from(graph.join(c, _is_victim(c, graph)))


def children(t: Tables) -> Executable:
    """Select the checkpoints whose parent is one of some: the parent's key, and the children's ids as an array.

    Binds: see `_graphs`.
    """
    c, graph = t.checkpoints, _graphs()
    lines = union_all(
        select(
            c.c.thread_id,
            c.c.checkpoint_ns,
            c.c.parent_checkpoint_id.label("checkpoint_id"),
            c.c.checkpoint_id.label("child"),
        )
        .select_from(graph.join(c, same_graph(c, graph)))
        .where(c.c.parent_checkpoint_id.is_not(None)),
        _victims().add_columns(cast(null(), Text)),
    ).subquery("lines")
    of = [lines.c.thread_id, lines.c.checkpoint_ns, lines.c.checkpoint_id]
    found = func.array_agg(lines.c.child).filter(lines.c.child.is_not(None))
    is_sought = and_(func.bool_or(lines.c.child.is_(None)), func.count(lines.c.child) > int_literal(0))
    return select(*of, found).group_by(*of).having(is_sought)


def reparent(t: Tables) -> Executable:
    """Give checkpoints another parent, or none where there is no such parent.

    Binds: arrays that go together, `reparented_thread_ids`, `reparented_checkpoint_nss`, `reparented_checkpoint_ids`,
    `reparented_parent_ids`.
    """
    c, p = t.checkpoints, t.checkpoints.alias("parent")
    new = few_rows_of_binds("reparented_", thread_id=Text, checkpoint_ns=Text, checkpoint_id=Text, parent_id=Text)
    parent = select(p.c.checkpoint_id).where(same_graph(p, new), p.c.checkpoint_id == new.c.parent_id)
    return update(c).values(parent_checkpoint_id=parent.correlate(new).scalar_subquery()).where(_is_of(c, new))


def next_blob(t: Tables) -> Executable:
    """Select the channel and version of the blob that is so many after another in a graph, or of its last.

    Binds: `thread_id`, `checkpoint_ns`, `after_channel`, `after_version` and `most`.
    """
    b = t.checkpoint_blobs
    order = [b.c.channel, b.c.version]
    following = select(*order).where(_is_here(b), tuple_(*order) > _place("after")).order_by(*order)
    these = following.limit(param("most", Integer)).subquery("these")
    return select(these).order_by(these.c.channel.desc(), these.c.version.desc()).limit(int_literal(1))


def pass_over(t: Tables) -> Executable:
    """Count the checkpoints of a graph by the index, so that it forgets which are gone; nothing else does that at once.

    Binds: `thread_id`, `checkpoint_ns`.
    """
    return select(func.count()).select_from(_here_in_order(t))


def lock_blobs(t: Tables, *, some: bool = False) -> Executable:
    """Lock the blobs that no checkpoint of their graph refers to. Returns how many.

    Whoever refers to one of them by having found it there has it locked (see `storing.keeping`), or waits for us. In
    the statement after this one it shows whether they still are unused.

    Binds: see `_graphs`; for some of one graph, `thread_id`, `checkpoint_ns`, and from where to where, `after_channel`,
    `after_version`, `upto_channel`, `upto_version`.
    """
    b, dead = t.checkpoint_blobs, _dead_blobs(t, some=some)
    order = [column.collate("C") for column in b.primary_key]
    locked = select(b.c.thread_id).select_from(dead.join(b, same_blob(b, dead))).order_by(*order).with_for_update(of=b)
    return select(func.count()).select_from(locked.subquery("locked"))


def delete_blobs(t: Tables, *, some: bool = False) -> Executable:
    """Delete what `lock_blobs` has locked, as far as no checkpoint refers to it now. Binds: the same.

    Returns how many, and their bytes.
    """
    b, dead = t.checkpoint_blobs, _dead_blobs(t, some=some)
    gone = delete(b).where(same_blob(b, dead)).returning(_size(b.c.blob)).cte("gone")
    return _count(gone)


def count_blobs(t: Tables) -> Executable:
    """Count what `delete_blobs` would delete once some checkpoints are gone. Binds: see `_graphs` and `_victims`."""
    b, dead = t.checkpoint_blobs, _dead_blobs(t, but_for_victims=True)
    return _count(select(_size(b.c.blob)).select_from(dead.join(b, same_blob(b, dead))).cte("gone"))


def paged_threads(t: Tables) -> Executable:
    """Select which of some threads have pages. Binds: `thread_ids`."""
    threads = t.checkpoint_threads
    return select(threads.c.thread_id).where(_is_given(threads))


def delete_pages(t: Tables) -> Executable:
    """Delete the pages of threads that no blob refers to, and begin another epoch. Binds: `thread_ids`.

    To be executed after `lock_threads`, in one transaction: its snapshot then has everything that was stored before.
    Returns how many, and their bytes.
    """
    p, threads = t.checkpoint_pages, t.checkpoint_threads
    dead = _dead_pages(t, t.checkpoint_blobs)
    epoch = (
        update(threads).where(_is_given(threads)).values(epoch=threads.c.epoch + int_literal(1)).cte("another_epoch")
    )
    gone = delete(p).where(_is_page(p, dead)).returning(_size(p.c.page)).cte("gone")
    return _count(gone).add_cte(epoch)


def count_pages(t: Tables) -> Executable:
    """Count what `delete_pages` would delete once some checkpoints are gone.

    Binds: `thread_ids`, and see `_graphs` and `_victims`.
    """
    b, p = t.checkpoint_blobs, t.checkpoint_pages
    dead = _dead_blobs(t, but_for_victims=True)
    keys = select(*b.primary_key).where(_is_given(b), b.c.type == text_literal(PAGED))
    left = keys.except_(select(*dead.c)).cte("left_blobs")
    kept = (
        select(b).select_from(left.join(b, same_blob(b, left))).where(b.c.type == text_literal(PAGED)).subquery("kept")
    )
    pages = _dead_pages(t, kept)
    return select(func.count(), _sum(_size(p.c.page))).select_from(pages.join(p, _is_page(p, pages)))


def forget_threads(t: Tables) -> Executable:
    """Delete the rows of threads that have no pages any longer. Binds: `thread_ids`."""
    threads, p = t.checkpoint_threads, t.checkpoint_pages
    has_pages = exists().where(p.c.thread_id == threads.c.thread_id)
    return delete(threads).where(_is_given(threads), ~has_pages)


def delete_threads(t: Tables) -> Executable:
    """Delete everything stored for some threads. Binds: `thread_ids`.

    Returns for each table how many rows and bytes, as arrays of two: writes, checkpoints, blobs, pages.
    """
    w, c, b, p, threads = (
        t.checkpoint_writes,
        t.checkpoints,
        t.checkpoint_blobs,
        t.checkpoint_pages,
        t.checkpoint_threads,
    )
    sizes: list[tuple[Table, ColumnElement[Any]]] = [
        (w, _size(w.c.blob)),
        (c, _json_size(t)),
        (b, _size(b.c.blob)),
        (p, _size(p.c.page)),
    ]
    gone = [delete(table).where(_is_given(table)).returning(size).cte(f"gone_{table.name}") for table, size in sizes]
    return _counts(*gone).add_cte(delete(threads).where(_is_given(threads)).cte("gone_threads"))


def _graphs() -> TableValuedAlias:
    """The graphs that something goes of, with the place of the ids of what goes in an array of all of them.

    Binds: arrays that go together, `graph_thread_ids`, `graph_checkpoint_nss`, `graph_firsts` and `graph_lasts`;
    `checkpoint_ids`.
    """
    return few_rows_of_binds("graph_", thread_id=Text, checkpoint_ns=Text, first=Integer, last=Integer)


def _ids(graph: FromClause) -> ColumnElement[Any]:
    """The ids of what goes of a graph, as an array."""
    ids = select(array_param("checkpoint_ids")).scalar_subquery()
    return ids[slice(graph.c.first, graph.c.last)]


def _spans() -> FromClause:
    """The graphs that something goes of, with the least and the greatest id of what goes."""
    graph = _graphs()
    ids = rows_of(_ids(graph), "checkpoint_id")
    least, greatest = [select(end(ids.c.checkpoint_id)).scalar_subquery() for end in (func.min, func.max)]
    columns = [graph.c.thread_id, graph.c.checkpoint_ns, least.label("least"), greatest.label("greatest")]
    # The LIMIT has them computed once, not for every row that is compared with them, and the planner expect one graph
    # rather than ten, of which it would read the tables whole.
    count = func.cardinality(array_param("graph_thread_ids"), type_=Integer)
    return select(*columns).limit(select(count).scalar_subquery()).subquery("span")


def _is_victim(table: FromClause, span: FromClause) -> ColumnElement[bool]:
    """Whether a row is of what goes: of those in the span, for what is between is little as a rule.

    Looking up each id in the index takes thrice as long; and an array of ids may be compared one by one with each row.
    """
    # IS TRUE keeps it from being a join, which may begin with the ids.
    is_sought = tuple_(table.c.thread_id, table.c.checkpoint_ns, table.c.checkpoint_id).in_(_victims()).is_(true())
    return and_(same_graph(table, span), table.c.checkpoint_id.between(span.c.least, span.c.greatest), is_sought)


def _victims() -> Select[Any]:
    """The keys of what goes."""
    graph = _graphs()
    one = rows_of(_ids(graph), "checkpoint_id").lateral("one")
    return select(graph.c.thread_id, graph.c.checkpoint_ns, one.c.checkpoint_id).select_from(graph.join(one, true()))


def _is_of(table: FromClause, chosen: FromClause) -> ColumnElement[bool]:
    return and_(same_graph(table, chosen), table.c.checkpoint_id == chosen.c.checkpoint_id)


def _is_given(table: FromClause) -> ColumnElement[bool]:
    return table.c.thread_id == func.any(array_param("thread_ids"))


def _is_here(table: FromClause) -> ColumnElement[bool]:
    return and_(table.c.thread_id == param("thread_id"), table.c.checkpoint_ns == param("checkpoint_ns"))


def _is_page(pages: FromClause, dead: FromClause) -> ColumnElement[bool]:
    return and_(pages.c.thread_id == dead.c.thread_id, pages.c.digest == dead.c.digest)


def _dead_blobs(t: Tables, *, but_for_victims: bool = False, some: bool = False) -> CTE:
    """The keys of the blobs that no checkpoint of their graph refers to, or none but those that go; or some of them."""
    c: FromClause = t.checkpoints
    b, graph = t.checkpoint_blobs, _graphs()
    left: FromClause = graph.join(c, same_graph(c, graph))
    if but_for_victims:
        keys = select(*t.checkpoints.primary_key).select_from(left).except_(_victims()).cte("left_checkpoints")
        left = keys.join(c, _is_of(c, keys))
    used = _used(c, left)
    stored = select(*b.primary_key)
    if some:
        place = tuple_(b.c.channel, b.c.version)
        stored = stored.where(_is_here(b), place > _place("after"), place <= _place("upto"))
        c = _here_in_order(t)
        used = _used(c, c)
    else:
        stored = stored.select_from(graph.join(b, same_graph(b, graph)))
    return stored.except_(used).cte("dead")


def _here_in_order(t: Tables) -> FromClause:
    """The checkpoints of one graph by the index: reading the table would pass over all that is gone each time."""
    c = t.checkpoints
    return select(c).where(_is_here(c)).order_by(c.c.checkpoint_id).offset(int_literal(0)).subquery("here")


def _used(c: FromClause, left: FromClause) -> Select[Any]:
    """The keys of the blobs that the checkpoints which are left refer to."""
    versions = func.jsonb_each_text(member(c.c.checkpoint, text_literal("channel_versions"))).table_valued(
        "key", "value"
    )
    pairs = select(versions.c.key, versions.c.value).correlate(c).lateral("pairs")
    return select(c.c.thread_id, c.c.checkpoint_ns, *pairs.c).select_from(left.join(pairs, true()))


def _dead_pages(t: Tables, b: FromClause) -> CTE:
    """The keys of the pages of some threads that no blob of these refers to."""
    p = t.checkpoint_pages
    used = (
        digests_of(b).add_columns(b.c.thread_id).where(_is_given(b), b.c.type == text_literal(PAGED)).subquery("used")
    )
    stored = select(p.c.thread_id, p.c.digest).where(_is_given(p))
    return stored.except_(select(used.c.thread_id, used.c.digest)).cte("dead_pages")


def _counts(*gone: CTE) -> Select[Any]:
    """How many rows and bytes, of each; where they delete, they do so in this order, when they are asked for."""
    counts: list[ColumnElement[Any]] = [
        select(array([func.count(), _sum(one.c.size)])).select_from(one).scalar_subquery() for one in gone
    ]
    return select(*counts)


def _count(rows: CTE) -> Select[Any]:
    columns: list[ColumnElement[Any]] = [func.count(), _sum(rows.c.size)]
    return select(*columns).select_from(rows)


def _place(name: str) -> ColumnElement[Any]:
    return tuple_(param(f"{name}_channel"), param(f"{name}_version"))


def _size(*columns: ColumnElement[Any]) -> ColumnElement[int]:
    """How many bytes the values of a row occupy as they are stored, that is, compressed."""
    sizes = [func.coalesce(func.pg_column_size(column, type_=Integer), int_literal(0)) for column in columns]
    return sum(sizes[1:], start=sizes[0]).label("size")


def _json_size(t: Tables) -> ColumnElement[int]:
    return _size(t.checkpoints.c.checkpoint, t.checkpoints.c.metadata)


def _sum(size: ColumnElement[int]) -> ColumnElement[int]:
    return func.coalesce(func.sum(size, type_=BigInteger), int_literal(0))

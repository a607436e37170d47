"""The statements that ask a server for facts about itself and our tables; no I/O.

They read the catalog, statistics and the tables that note versions, and of checkpoints only the ends of an index. Where
a statement binds `names`, those are the qualified names of our tables; the partitions of a table count as the table.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.schema import Tables
from checkpoint_store.sql import expressions as ex

OLD_TRANSACTION_SECONDS = 300
"""The age from which `sessions` has transactions that hold no lock on our tables."""


def limit_waits(_: Tables) -> sa.Select[Any]:
    """Limit the statements of the transaction, and their waits for locks. Binds: `statement`, `lock`, as text."""
    limits = {"statement_timeout": "statement", "lock_timeout": "lock"}
    return sa.select(*[sa.func.set_config(ex.text_literal(of), ex.param(by), ex.TRUE) for of, by in limits.items()])


def server(_: Tables) -> sa.Select[Any]:
    """Select the facts of `storage.diagnosis.Server`, in its order: about the server, the database and the role."""
    role = _catalog("pg_roles", "rolname", "rolsuper", "rolconnlimit")
    database = _catalog("pg_database", "datname", "datconnlimit", "datfrozenxid", "datminmxid")
    mode = _catalog("pg_settings", "name", "setting", "source")
    extension = _catalog("pg_extension", "extname")
    return sa.select(
        _number("server_version_num"),
        _setting("server_version"),
        database.c.datname,
        role.c.rolname,
        role.c.rolsuper,
        sa.func.has_database_privilege(sa.func.current_database(), ex.text_literal("CREATE")),
        sa.func.pg_is_in_recovery(),
        _is_on("default_transaction_read_only"),
        _setting("server_encoding"),
        _number("max_connections"),
        # The second one since PostgreSQL 16.
        _number("superuser_reserved_connections") + sa.func.coalesce(_number("reserved_connections"), ex.ZERO),
        role.c.rolconnlimit,
        database.c.datconnlimit,
        _search_path(),
        mode.c.setting,
        mode.c.source,
        sa.func.age(database.c.datfrozenxid),
        sa.func.mxid_age(database.c.datminmxid),
        _number("autovacuum_freeze_max_age"),
        sa.and_(_is_on("autovacuum"), _is_on("track_counts")),
        sa.exists().where(extension.c.extname == ex.text_literal("citus")),
    ).where(
        role.c.rolname == sa.func.current_user(),
        database.c.datname == sa.func.current_database(),
        mode.c.name == ex.text_literal("plan_cache_mode"),
    )


def schema_rights(_: Tables) -> sa.Select[Any]:
    """Select the name of the tables' schema, and whether the role may use it and create in it.

    There is no row if the schema is missing. Binds: `schema`, NULL for the `search_path`'s.
    """
    schema = _catalog("pg_namespace", "oid", "nspname")
    rights = [sa.func.has_schema_privilege(schema.c.oid, ex.text_literal(right)) for right in ("USAGE", "CREATE")]
    wanted = sa.func.coalesce(ex.param("schema"), sa.cast(sa.func.current_schema(), sa.Text))
    return sa.select(schema.c.nspname, *rights).where(schema.c.nspname == wanted)


def named_relations(_: Tables) -> sa.Select[Any]:
    """Select the relations with the tables' names in a schema, or in those of the `search_path`.

    A row is a `storage.diagnosis.Relation`. Binds: `tables`, names without a schema; `schema`, NULL for the
    `search_path`'s.
    """
    columns = ("oid", "relname", "relkind", "relowner", "relnamespace", "relrowsecurity", "reltuples")
    relation = _catalog("pg_class", *columns)
    schema = _catalog("pg_namespace", "oid", "nspname")
    given = ex.param("schema")
    is_in_path = schema.c.nspname == sa.func.any(_search_path())
    rights = ("SELECT", "INSERT", "UPDATE", "DELETE")
    return (
        sa.select(
            schema.c.nspname,
            relation.c.relname,
            sa.func.pg_get_userbyid(relation.c.relowner),
            sa.or_(given.is_not(None), sa.func.pg_table_is_visible(relation.c.oid)),
            sa.func.row_security_active(relation.c.oid),
            *[sa.func.has_table_privilege(relation.c.oid, ex.text_literal(right)) for right in rights],
            _has_rows(relation),
        )
        .join_from(relation, schema, schema.c.oid == relation.c.relnamespace)
        .where(
            sa.case((given.is_(None), is_in_path), else_=schema.c.nspname == given),
            relation.c.relname == sa.func.any(ex.array_param("tables")),
            _is_table(relation),
        )
        .order_by(schema.c.nspname, relation.c.relname)
    )


def elsewhere(_: Tables) -> sa.Select[Any]:
    """Select other schemas with a table `checkpoints` that the role may use, at most five, those with rows first.

    A row is a schema, whether its table has rows, and how many schemas there are. Binds: `schema`, the one that is
    looked at, NULL for the `search_path`'s.
    """
    relation = _catalog("pg_class", "oid", "relname", "relkind", "relnamespace", "reltuples")
    schema = _catalog("pg_namespace", "oid", "nspname")
    given = ex.param("schema")
    has_rows = _has_rows(relation).label("has_rows")
    return (
        sa.select(schema.c.nspname, has_rows, sa.func.count().over())
        .join_from(relation, schema, schema.c.oid == relation.c.relnamespace)
        .where(
            relation.c.relname == ex.text_literal("checkpoints"),
            _is_table(relation),
            sa.case(
                (given.is_(None), schema.c.nspname != sa.func.all(_search_path())), else_=schema.c.nspname != given
            ),
            sa.func.has_schema_privilege(schema.c.oid, ex.text_literal("USAGE")),
        )
        .order_by(has_rows.desc(), schema.c.nspname)
        .limit(ex.int_literal(5))
    )


def rules(_: Tables) -> sa.CompoundSelect[Any]:
    """Select what may hide, change or refuse rows; a row is a `storage.diagnosis.Rule`. Binds: `names`."""
    trigger = _catalog("pg_trigger", "tgrelid", "tgname", "tgisinternal", "tgenabled")
    policy = _catalog("pg_policy", "polrelid", "polname")
    rewrite = _catalog("pg_rewrite", "ev_class", "rulename", "ev_type", "ev_enabled")
    constraint = _catalog("pg_constraint", "conrelid", "conname", "contype", "conparentid", "conislocal")
    column = _catalog("pg_attribute", "attrelid", "attname", "attnum", "attnotnull", "atthasdef", "attidentity")
    ours = _ours()
    triggers = sa.select(ours.c.name, ex.text_literal("trigger"), sa.cast(trigger.c.tgname, sa.Text)).where(
        trigger.c.tgrelid == ours.c.oid,
        sa.not_(trigger.c.tgisinternal),
        trigger.c.tgenabled != ex.text_literal("D"),
    )
    policies = sa.select(ours.c.name, ex.text_literal("policy"), sa.cast(policy.c.polname, sa.Text)).where(
        policy.c.polrelid == ours.c.oid
    )
    # A view's own rule is for SELECT, '1'.
    rewrites = sa.select(ours.c.name, ex.text_literal("rule"), sa.cast(rewrite.c.rulename, sa.Text)).where(
        rewrite.c.ev_class == ours.c.oid,
        rewrite.c.ev_type != ex.text_literal("1"),
        rewrite.c.ev_enabled != ex.text_literal("D"),
    )
    kinds = [ex.text_literal(kind) for kind in "cf"]
    constraints = sa.select(ours.c.name, ex.text_literal("constraint"), sa.cast(constraint.c.conname, sa.Text)).where(
        constraint.c.conrelid == ours.c.oid,
        sa.cast(constraint.c.contype, sa.Text).in_(kinds),
        constraint.c.conparentid == ex.ZERO,
        constraint.c.conislocal,
    )
    columns = sa.select(ours.c.name, ex.text_literal("column"), sa.cast(column.c.attname, sa.Text)).where(
        column.c.attrelid == ours.c.oid,
        column.c.attnum > ex.ZERO,
        column.c.attnotnull,
        sa.not_(column.c.atthasdef),
        column.c.attidentity == ex.text_literal(""),
    )
    return sa.union(triggers, policies, rewrites, constraints, columns).order_by(sa.literal_column("1, 2, 3"))


def indexes(_: Tables) -> sa.Select[Any]:
    """Select the indexes of our tables; a row is a `storage.diagnosis.Index`. Binds: `names`."""
    index = _catalog("pg_index", "indexrelid", "indrelid", "indisvalid", "indisprimary")
    relation = _catalog("pg_class", "oid", "relname", "relnamespace")
    schema = _catalog("pg_namespace", "oid", "nspname")
    building = _catalog("pg_stat_progress_create_index", "index_relid")
    ours = _ours()
    return (
        sa.select(
            ours.c.name,
            ours.c.is_partition,
            schema.c.nspname,
            relation.c.relname,
            index.c.indisprimary,
            index.c.indisvalid,
            sa.exists().where(building.c.index_relid == index.c.indexrelid),
        )
        .select_from(ours)
        .join(index, index.c.indrelid == ours.c.oid)
        .join(relation, relation.c.oid == index.c.indexrelid)
        .join(schema, schema.c.oid == relation.c.relnamespace)
        .order_by(ours.c.name, relation.c.relname)
    )


def table_statistics(_: Tables) -> sa.Select[Any]:
    """Select the server's statistics of our tables; a row is a `storage.diagnosis.TableStatistics`. Binds: `names`.

    By functions, since the views of the same would look at every table of the database.
    """
    relation = _catalog("pg_class", *_CLASS)
    toast = _catalog("pg_class", *_CLASS).alias("toast")
    ours = _ours()
    is_off = ex.text_literal("autovacuum_enabled=false") == sa.func.any(relation.c.reloptions)
    vacuums, analyzes = ("last_autovacuum", "last_vacuum"), ("last_autoanalyze", "last_analyze")
    return (
        sa.select(
            ours.c.name,
            _sum(sa.func.greatest(relation.c.reltuples, ex.ZERO)),
            _sum(_statistic("live_tuples", relation)),
            _sum(_statistic("dead_tuples", relation)),
            _sum(relation.c.relpages),
            _sum(_statistic("live_tuples", toast)),
            _sum(_statistic("dead_tuples", toast)),
            _sum(toast.c.relpages),
            sa.func.max(sa.func.greatest(*[_statistic(f"{each}_time", relation) for each in vacuums])),
            sa.func.max(sa.func.greatest(*[_statistic(f"{each}_time", relation) for each in analyzes])),
            sa.func.bool_or(sa.func.coalesce(is_off, ex.FALSE)),
            _sum(_vacuum_at(relation)),
        )
        .select_from(ours)
        .join(relation, sa.and_(relation.c.oid == ours.c.oid, relation.c.relkind == ex.text_literal("r")))
        .outerjoin(toast, toast.c.oid == relation.c.reltoastrelid)
        .group_by(ours.c.name)
        .order_by(ours.c.name)
    )


def _vacuum_at(relation: sa.TableClause) -> sa.ColumnElement[Any]:
    """Return the number of dead rows of a table beyond which autovacuum vacuums it."""

    def option(name: str) -> sa.ColumnElement[Any]:
        options = sa.func.pg_options_to_table(relation.c.reloptions)
        each = options.table_valued(sa.column("option_name", sa.Text), sa.column("option_value", sa.Text))
        own = sa.select(each.c.option_value).where(each.c.option_name == ex.text_literal(name)).correlate(relation)
        return sa.cast(sa.func.coalesce(own.scalar_subquery(), _setting(name)), sa.Double)

    threshold, factor, most = [
        option(f"autovacuum_vacuum_{name}") for name in ("threshold", "scale_factor", "max_threshold")
    ]
    found = threshold + factor * sa.func.greatest(relation.c.reltuples, ex.ZERO)
    # Servers before version 18 have no maximum, and -1 is none.
    return sa.func.least(found, sa.case((most >= ex.ZERO, most)))


def connections(_: Tables) -> sa.Select[Any]:
    """Select the numbers of connections: all, those to this database, and those of this role."""
    activity = _catalog("pg_stat_activity", "backend_type", "datid", "datname", "usename")
    client = ex.text_literal("client backend")
    # The kind of other roles' sessions is hidden from most.
    is_client = sa.func.coalesce(activity.c.backend_type, client) == client
    counts: list[sa.ColumnElement[Any]] = [
        sa.func.count(),
        sa.func.count().filter(activity.c.datname == sa.func.current_database()),
        sa.func.count().filter(activity.c.usename == sa.func.current_user()),
    ]
    return sa.select(*counts).where(is_client, activity.c.datid.is_not(None))


def sessions(_: Tables) -> sa.Select[Any]:
    """Select the sessions with locks on our tables or old snapshots; a row is a `storage.diagnosis.Session`.

    At most 50, the oldest transactions first; never their queries, which have values in them. Binds: `names`.
    """
    activity = _catalog(
        *("pg_stat_activity", "pid", "datname", "usename", "application_name", "state"),
        *("xact_start", "state_change", "backend_xmin"),
    )
    locks = _locks()
    waits = sa.func.coalesce(locks.c.waits, ex.FALSE)
    age = _seconds_since(activity.c.xact_start)
    return (
        sa.select(
            activity.c.pid,
            activity.c.usename,
            activity.c.application_name,
            activity.c.state,
            age,
            _seconds_since(activity.c.state_change),
            locks.c.names,
            waits,
            sa.func.coalesce(locks.c.excludes, ex.FALSE),
            # Of a session that waits: the question takes locks of the server's own.
            sa.case((waits, sa.func.pg_blocking_pids(activity.c.pid))),
        )
        .outerjoin_from(activity, locks, locks.c.pid == activity.c.pid)
        .where(
            activity.c.datname == sa.func.current_database(),
            activity.c.pid != sa.func.pg_backend_pid(),
            sa.or_(
                locks.c.pid.is_not(None),
                sa.and_(activity.c.backend_xmin.is_not(None), age > ex.int_literal(OLD_TRANSACTION_SECONDS)),
            ),
        )
        .order_by(activity.c.xact_start, activity.c.pid)
        .limit(ex.int_literal(50))
    )


def end_of_checkpoints(t: Tables, *, newest: bool) -> sa.Select[Any]:
    """Select the first or the last checkpoint id of root graphs, from one end of their index."""
    c = t.checkpoints.c
    is_root = c.checkpoint_ns.like(ex.text_literal(""))
    order = c.checkpoint_id.desc() if newest else c.checkpoint_id
    return sa.select(c.checkpoint_id).where(is_root).order_by(order).limit(ex.ONE)


_CLASS = ("oid", "relkind", "reltuples", "relpages", "reltoastrelid", "reloptions")


def _catalog(name: str, *columns: str) -> sa.TableClause:
    return sa.table(name, *map(sa.column, columns), schema="pg_catalog")


def _ours() -> sa.Subquery:
    """Return the oids of our tables and of their partitions, each with the table's qualified name. Binds: `names`."""
    child = _catalog("pg_inherits", "inhrelid", "inhparent")
    name = ex.rows_of(ex.array_param("names"), "name").alias("named")
    oid = sa.cast(sa.func.to_regclass(name.c.name), pg.OID).label("oid")
    own = sa.select(oid, name.c.name, ex.FALSE.label("is_partition")).cte("own")
    parts = sa.select(child.c.inhrelid, own.c.name, ex.TRUE).where(child.c.inhparent == own.c.oid)
    return sa.union_all(sa.select(own).where(own.c.oid.is_not(None)), parts).subquery("ours")


def _locks() -> sa.Subquery:
    """Return the sessions that have locks on our tables, or wait for one. Binds: `names`."""
    lock = _catalog("pg_locks", "pid", "relation", "database", "mode", "granted")
    database = _catalog("pg_database", "oid", "datname")
    ours = _ours()
    return (
        sa.select(
            lock.c.pid,
            sa.func.array_agg(ours.c.name.distinct()).label("names"),
            sa.func.bool_or(sa.not_(lock.c.granted)).label("waits"),
            sa.func.bool_or(lock.c.mode == ex.text_literal("AccessExclusiveLock")).label("excludes"),
        )
        .join_from(lock, ours, ours.c.oid == lock.c.relation)
        .join(database, sa.and_(database.c.oid == lock.c.database, database.c.datname == sa.func.current_database()))
        .group_by(lock.c.pid)
        .subquery("locks")
    )


def _is_table(relation: sa.TableClause) -> sa.ColumnElement[bool]:
    return sa.cast(relation.c.relkind, sa.Text).in_([ex.text_literal(kind) for kind in "rpvmf"])


def _has_rows(relation: sa.FromClause) -> sa.ColumnElement[bool]:
    """Return whether a table, or a partition of it, has rows by the server's statistics, for which no lock is taken."""
    child, part = _catalog("pg_inherits", "inhrelid", "inhparent"), _catalog("pg_class", *_CLASS).alias("part")
    own, of_part = [
        sa.func.greatest(one.c.reltuples, _statistic("live_tuples", one)) > ex.ZERO for one in (relation, part)
    ]
    parts = sa.exists().where(child.c.inhparent == relation.c.oid, part.c.oid == child.c.inhrelid, of_part)
    return sa.or_(own, parts)


def _search_path() -> sa.ColumnElement[Any]:
    return sa.cast(sa.func.current_schemas(ex.FALSE), sa.ARRAY(sa.Text))


def _setting(name: str) -> sa.ColumnElement[Any]:
    """Return a setting of the server, or NULL if it has none of that name."""
    return sa.func.current_setting(ex.text_literal(name), ex.TRUE)


def _number(name: str) -> sa.ColumnElement[int]:
    return sa.cast(_setting(name), sa.Integer)


def _is_on(name: str) -> sa.ColumnElement[bool]:
    return _setting(name) == ex.text_literal("on")


def _statistic(name: str, relation: sa.FromClause) -> sa.ColumnElement[Any]:
    function = getattr(sa.func, f"pg_stat_get_{name}")
    result: sa.ColumnElement[Any] = function(relation.c.oid)
    return result


def _sum(count: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.cast(sa.func.coalesce(sa.func.sum(count), ex.ZERO), sa.BigInteger)


def _seconds_since(time: sa.ColumnElement[Any]) -> sa.ColumnElement[float]:
    return sa.cast(sa.extract("epoch", sa.func.clock_timestamp() - time), sa.Double)

"""Findings about the schema: revision, rights, rules, indexes, and tables of the same names elsewhere."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from checkpoint_store.cli.findings.finding import Finding, Unknown, failure, listed, ok, warning
from checkpoint_store.cli.text import counted
from checkpoint_store.migrations.privileges import grants as grant_statements
from checkpoint_store.schema import HEAD, VERSION_TABLE, Tables, identifier, qualified
from checkpoint_store.storage.catalog import Catalog
from checkpoint_store.storage.diagnosis import Elsewhere, Index, Relation, Rule, SchemaRights, Server

_DIALECT: sa.Dialect = pg.dialect()  # type: ignore[no-untyped-call]

_TRANSIENT_SUFFIXES = ("_ccnew", "_ccold")
"""Ends of names that REINDEX CONCURRENTLY gives, before digits."""


def of_ours(relations: Sequence[Relation]) -> list[Relation]:
    """Return the tables of ours that statements find."""
    names = {table.name for table in Tables().all}
    return [one for one in relations if one.is_found and one.name in names]


def finds(relations: Sequence[Relation], name: str) -> Relation | None:
    """Return the relation that a statement finds by a name."""
    return next((one for one in relations if one.is_found and one.name == name), None)


def revision(
    schema: str | None, catalog: Catalog, is_usable: bool, relations: Sequence[Relation], elsewhere: Elsewhere
) -> Finding:
    """Judge whether the tables are those that this version works on."""
    upgrade = "checkpoint-store upgrade" + ("" if schema is None else f" --schema {shlex.quote(schema)}")
    if not (tables := of_ours(relations)):
        found = "the tables were never set up"
        if not elsewhere.total:
            return failure("revision", found, upgrade)
        found += f" here, but there are some in {elsewhere.places}. Name it, or set up new ones"
        other = f"checkpoint-store doctor --schema {shlex.quote(elsewhere.schemas[0])}"
        return failure("revision", found, other, upgrade)
    noted = finds(relations, VERSION_TABLE)
    if noted is not None and not noted.may_select:
        return warning("revision", f"not known: this role may not read {VERSION_TABLE}; see grants")
    if catalog.foreign:
        found = f"another application's table has the name of one of ours; it lacks {catalog.foreign}"
        return failure("revision", f"{found}. Use a schema of your own", "checkpoint-store upgrade --schema agents")
    place = f"in schema {identifier(tables[0].schema)}"
    if catalog.revision == HEAD:
        return ok("revision", f"{HEAD} {place}, which is head")
    if is_usable:
        found = f"{catalog.revision} {place}, newer than this version's {HEAD}: update the library"
        return warning("revision", found, "pip install --upgrade checkpoint-store")
    adds = f", adding {catalog.additions}" if catalog.additions else ""
    found = f"the tables {place} {catalog.state}; this version needs {HEAD}. An upgrade is done in place{adds}"
    return failure("revision", found, upgrade)


def damage(catalog: Catalog | Unknown) -> list[Finding]:
    """Return the finding about tables and columns that are missing, though the tables are noted as being at head."""
    if isinstance(catalog, Unknown) or catalog.revision != HEAD or not catalog.missing:
        return []
    found = f"missing, though {VERSION_TABLE} says {HEAD}: {listed(catalog.missing)}. Savers can't store"
    return [failure("tables", f"{found}; restore all tables from one backup")]


def is_empty(relations: Sequence[Relation]) -> bool:
    """Return whether the table of checkpoints that statements find has no rows, by the server's statistics."""
    checkpoints = finds(relations, Tables().checkpoints.name)
    return checkpoints is not None and not checkpoints.has_rows


def duplicates(server: Server, relations: Sequence[Relation], elsewhere: Elsewhere) -> Finding:
    """Judge whether tables of the same names are in other schemas, where another client may find them."""
    hidden = sorted({one.schema for one in relations if not one.is_found})
    if hidden and (found := of_ours(relations)):
        return warning(
            "schemas",
            f"tables of the same names are in {listed([identifier(name) for name in hidden])} too, later in the "
            f"search_path than {identifier(found[0].schema)}. Whoever has another search_path works on those: name the "
            "schema in the saver and in Alembic's options",
            f"schema={found[0].schema!r}",
        )
    # Of tables that Citus has distributed, only the workers have statistics.
    if elsewhere.has_rows and is_empty(relations) and not server.has_citus:
        return warning(
            "schemas",
            f"the tables here have no checkpoints, while those in {elsewhere.places} have some. If savers are to work "
            "on those, name the schema",
            f"checkpoint-store doctor --schema {shlex.quote(elsewhere.schemas[0])}",
        )
    if elsewhere.total:
        return ok("schemas", f"tables of the same names are in {elsewhere.places} too; --schema looks there")
    return ok("schemas", "no other has tables of these names")


def grants(schema: str | None, server: Server, rights: SchemaRights | None, relations: Sequence[Relation]) -> Finding:
    """Judge the rights of the role on the schema and the tables."""
    role = identifier(server.role)
    if rights is None:
        named = (
            "no schema of the search_path exists" if schema is None else f"schema {identifier(schema)} does not exist"
        )
        if server.may_create_schemas and schema is not None:
            return ok("grants", f"{named}; role {role} may create it")
        way_out = f"CREATE SCHEMA {identifier(schema or server.role)} AUTHORIZATION {role};"
        return failure("grants", f"{named}. As a role that may create schemas", way_out)
    place = identifier(rights.schema)
    if not rights.may_use:
        return failure("grants", f"role {role} may not use schema {place}", f"GRANT USAGE ON SCHEMA {place} TO {role};")
    if not (tables := of_ours(relations)):
        if rights.may_create:
            return ok("grants", f"role {role} may create tables in schema {place}")
        found = f"role {role} may not create tables in schema {place}, which setup() and upgrade have to"
        return warning("grants", found, f"GRANT CREATE ON SCHEMA {place} TO {role};")
    return _grants_on(schema, server, rights, tables, finds(relations, VERSION_TABLE))


def _grants_on(
    schema: str | None, server: Server, rights: SchemaRights, tables: list[Relation], noted: Relation | None
) -> Finding:
    role, owners = identifier(server.role), sorted({identifier(table.owner) for table in tables})
    missing = {
        "SELECT": [one.name for one in [*tables, *([noted] if noted else [])] if not one.may_select],
        "INSERT": [one.name for one in tables if not one.may_insert],
        "UPDATE": [one.name for one in tables if not one.may_update],
        "DELETE": [one.name for one in tables if not one.may_delete],
    }
    lacks = {right: names for right, names in missing.items() if names}
    if not lacks:
        create = "may" if rights.may_create else "may not"
        kind = ", a superuser," if server.is_superuser else ""
        return ok("grants", f"role {role}{kind} reads and writes all tables, and {create} create tables")
    way_out = [f"{grant};" for grant in grant_statements(server.role, schema).removesuffix(";").split(";\n")]
    by = f"As {listed(owners)}, who owns the tables"
    if all(len(missing[right]) == len(tables) for right in ("INSERT", "UPDATE", "DELETE")) and not missing["SELECT"]:
        return warning("grants", f"role {role} only reads: a service with it can't store. {by}", *way_out)
    words = "; ".join(f"{right} on {listed(names)}" for right, names in lacks.items())
    return failure("grants", f"role {role} lacks {words}. {by}", *way_out)


def rules(relations: Sequence[Relation], found: Sequence[Rule]) -> Finding:
    """Judge what may hide, change or refuse rows: triggers, policies, rules, constraints and columns of others."""
    active = {one.name for one in of_ours(relations) if one.has_row_security}
    by_kind: dict[str, list[str]] = {}
    for rule in found:
        by_kind.setdefault(rule.kind, []).append(f"{rule.name} on {rule.table}")
    policies = [f"{rule.name} on {rule.table}" for rule in found if rule.kind == "policy" and rule.table in active]
    columns = [f"{rule.table}.{rule.name}" for rule in found if _is_foreign_column(rule)]
    bare = sorted(active - {rule.table for rule in found if rule.kind == "policy"})
    parts = []
    if bare:
        parts.append(f"row security without a policy hides all rows of {listed(bare)} from this role")
    if policies:
        parts.append(f"policies may hide rows from this role: {listed(policies)}")
    if columns:
        parts.append(f"columns of others must not be NULL and have no default, so rows are refused: {listed(columns)}")
    for kind, effect in (("trigger", "change or drop"), ("rule", "change or drop"), ("constraint", "refuse")):
        if named := by_kind.get(kind):
            parts += [f"{kind}s may {effect} rows: {listed(named)}"]
    if not parts:
        return ok("rules", "no trigger, policy, rule or constraint holds for this role")
    way_out = "SELECT * FROM pg_policies WHERE tablename LIKE 'checkpoint%';" if active else ""
    judged = failure if bare or columns else warning
    return judged("rules", ". ".join(parts) + ". See that they let pass what savers store", *filter(None, [way_out]))


def indexes(schema: str | None, is_at_head: bool, relations: Sequence[Relation], found: Sequence[Index]) -> Finding:
    """Judge whether all indexes are there and valid."""
    if not (ours := of_ours(relations)):
        return ok("indexes", "no tables yet")
    tables, own = Tables(schema), [index for index in found if not index.is_partition]
    keyless = sorted({one.name for one in ours} - {index.table for index in own if index.is_primary})
    if keyless:
        way_out = [_primary_key(tables, name) for name in keyless]
        return failure("indexes", f"no primary key on {listed(keyless)}: savers can't store there", *way_out)
    invalid = [index for index in found if not index.is_valid and not index.is_being_built]
    # Older revisions lack some of them.
    expected = sorted(tables.checkpoints.indexes, key=lambda index: str(index.name)) if is_at_head else []
    missing = [index for index in expected if index.name not in {one.name for one in own}]
    words = []
    if invalid:
        words.append(f"invalid, so that they cost writes and serve nothing: {listed([one.name for one in invalid])}")
    if missing:
        words.append(
            f"missing, so that lists and sweeps read whole tables: {listed([str(one.name) for one in missing])}"
        )
    if words:
        online = not any(index.is_partition and index.table == "checkpoints" for index in found)
        way_out = [_repair(index) for index in invalid] + [_create(index, online=online) for index in missing]
        return warning("indexes", ". ".join(words), *way_out)
    building = [index.name for index in found if index.is_being_built]
    return ok(
        "indexes", f"{counted(len(found), 'index')}, all valid" + (f", {listed(building)} being built" * bool(building))
    )


def _is_foreign_column(rule: Rule) -> bool:
    ours = next((one for one in Tables().all if one.name == rule.table), None)
    return rule.kind == "column" and ours is not None and rule.name not in ours.columns


def _repair(index: Index) -> str:
    name = qualified(identifier(index.name), index.schema)
    left_over = index.name.rstrip("0123456789").endswith(_TRANSIENT_SUFFIXES)
    return f"{'DROP' if left_over else 'REINDEX'} INDEX CONCURRENTLY {name};"


def _create(index: sa.Index, *, online: bool) -> str:
    index.dialect_options["postgresql"]["concurrently"] = online
    return f"{sa.schema.CreateIndex(index).compile(dialect=_DIALECT)};"


def _primary_key(tables: Tables, name: str) -> str:
    table = next(one for one in tables.all if one.name == name)
    return (
        f"ALTER TABLE {qualified(name, tables.schema)} ADD PRIMARY KEY ({', '.join(table.primary_key.columns.keys())});"
    )

"""Privileges of the running service: the SQL that grants them, and the error for a role that lacks one."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from checkpoint_store.errors import AccessDenied
from checkpoint_store.schema import VERSION_TABLE, Tables, identifier, qualified

INSUFFICIENT_PRIVILEGE = "42501"
"""The SQLSTATE of a right that is missing."""


def grants(role: str, schema: str | None = None) -> str:
    """Return the SQL that gives a role the rights that savers need, `check`, and `setup()` on tables at head.

    Args:
        role: The database role of the running service; it needs no right to create anything.
        schema: The PostgreSQL schema of the tables. With None the role must have USAGE on the `search_path`'s, as
            every role has on `public` unless that was revoked.
    """
    to = identifier(role)
    tables = ", ".join(qualified(table.name, schema) for table in Tables(schema).all)
    usage = "" if schema is None else f"GRANT USAGE ON SCHEMA {identifier(schema)} TO {to};\n"
    return (
        f"{usage}GRANT SELECT, INSERT, UPDATE, DELETE ON {tables} TO {to};\n"
        f"GRANT SELECT ON {qualified(VERSION_TABLE, schema)} TO {to};"
    )


def access_denied(message: str, schema: str | None, role: str | None) -> AccessDenied:
    """Return the error for a right that is missing, with the server's message and the SQL that gives it.

    The role is None where it is not known, as in a transaction that the error has ended.
    """
    statements = grants(role or "app", schema).replace("\n", " ")
    stands_for = "" if role else ', where "app" stands for the one that lacks it (SELECT current_user)'
    return AccessDenied(f"{message}. A role that owns the tables can give the right{stands_for}: {statements}")


def role_of(conn: sa.Connection) -> str | None:
    """Return the role that a connection works as, after a statement that has failed was rolled back."""
    with contextlib.suppress(sa.exc.SQLAlchemyError):
        conn.rollback()
        return str(conn.scalar(sa.select(sa.func.current_user())))
    return None


def advice_on_ddl(conn: sa.Connection, schema: str | None) -> str:
    """Return the way out for a role that may not create the tables, or change them: the GRANT, or their owner.

    The statement that has failed is rolled back before the server is asked; without an answer there is no advice.
    """
    name = sa.func.current_schema() if schema is None else sa.literal(schema)
    exists = sa.func.to_regnamespace(sa.func.quote_ident(name)).is_not(None)
    table = sa.func.to_regclass(qualified(Tables(schema).checkpoints.name, schema))
    owner = sa.select(sa.func.pg_get_userbyid(_CLASSES.c.relowner)).where(_CLASSES.c.oid == table).scalar_subquery()
    asked = sa.select(name, exists, owner, sa.func.current_user(), sa.func.current_database())
    with contextlib.suppress(sa.exc.SQLAlchemyError):
        conn.rollback()
        place, is_there, owned_by, role, database = conn.execute(asked).one()
        conn.rollback()
        if owned_by not in (None, role):
            return f"The tables belong to the role {identifier(owned_by)}, and this one is {identifier(role)}."
        thing = f"SCHEMA {identifier(place)}" if is_there else f"DATABASE {identifier(database)}"
        return f"To give the right to this role: GRANT CREATE ON {thing} TO {identifier(role)};"
    return ""


_CLASSES = sa.table("pg_class", sa.column("oid"), sa.column("relowner"), schema="pg_catalog")

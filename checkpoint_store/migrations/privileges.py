"""Privileges of the running service: the SQL that grants them, and the error for a role that lacks one."""

from __future__ import annotations

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

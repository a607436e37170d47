"""SQL text that revisions are made of: DDL that SQLAlchemy has no constructs for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from sqlalchemy import TextClause, text

from checkpoint_store.schema import ADOPTED, STOCK_TABLE, VERSION_TABLE, identifier, qualified

Columns = Mapping[str, Mapping[str, str]]
"""The columns of tables by name, each with its type as PostgreSQL writes it."""


def statement(sql: str) -> TextClause:
    """Return a statement as it stands: a colon in it does not begin a parameter."""
    return text(sql.replace(":", "\\:"))


def block(body: str, declare: str = "") -> str:
    """Return a block of PL/pgSQL, of its statements and its variables, as a statement."""
    # No name of a schema has this tag in it.
    declarations = f"DECLARE\n    {declare}\n" if declare else ""
    return f"DO $checkpoint_store$\n{declarations}BEGIN\n    {body.strip()}\nEND\n$checkpoint_store$"


def literal(value: str) -> str:
    """Return a text as an SQL literal."""
    escaped = value.replace("'", "''")
    return f"'{escaped}'"


def create_schema(schema: str) -> TextClause:
    """Return the statement that creates a schema if it is missing, and needs the right to only then."""
    # CREATE SCHEMA IF NOT EXISTS needs it in any case.
    name = identifier(schema)
    return statement(
        block(f"IF to_regnamespace({literal(name)}) IS NULL THEN\n        CREATE SCHEMA {name};\n    END IF;")
    )


def refuse_foreign(tables: Columns, schema: str | None) -> TextClause:
    """Return the statement that fails if another application has a table of the same name, without these columns.

    VARCHAR passes for TEXT: `varchar_to_text` changes it.
    """
    body = f"""
    SELECT string_agg(name || '.' || col || ' ' || kind, ', ') INTO missing
    FROM {_wanted(tables, schema)}
    WHERE to_regclass(rel) IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = to_regclass(rel) AND attname = col AND NOT attisdropped
        AND (format_type(atttypid, atttypmod) = kind OR kind = 'text' AND atttypid = to_regtype('varchar'))
    );
    IF missing IS NOT NULL THEN
        RAISE EXCEPTION USING
            MESSAGE = 'a table of another application has the name of a checkpoint table; it lacks ' || missing,
            HINT = 'Keep the checkpoints in a PostgreSQL schema of their own.';
    END IF;
    """
    return statement(block(body, "missing text;"))


def varchar_to_text(tables: Columns, schema: str | None) -> TextClause:
    """Return the statement that turns VARCHAR columns into TEXT, without rewriting a table or an index.

    Columns that are missing are skipped.
    """
    body = f"""
    FOR change IN
        SELECT 'ALTER TABLE ' || rel || ' ' || string_agg(
            'ALTER COLUMN ' || quote_ident(col) || ' TYPE text'
            || CASE WHEN atthasdef THEN ', ALTER COLUMN ' || quote_ident(col) || ' SET DEFAULT ''''' ELSE '' END, ', '
        )
        FROM {_wanted(tables, schema)}
        JOIN pg_attribute ON attrelid = to_regclass(rel) AND attname = col AND NOT attisdropped
        WHERE kind = 'text' AND atttypid = to_regtype('varchar')
        GROUP BY rel
    LOOP
        EXECUTE change;
    END LOOP;
    """
    return statement(block(body, "change text;"))


def _wanted(tables: Columns, schema: str | None) -> str:
    # No percent sign may stand in here: offline, some dialects double it.
    rows = ",\n            ".join(
        f"({literal(table)}, {literal(qualified(table, schema))}, {literal(column)}, {literal(kind)})"
        for table, columns in tables.items()
        for column, kind in columns.items()
    )
    return f"(\n        VALUES\n            {rows}\n    ) AS wanted(name, rel, col, kind)"


def note_adoption(tables: Iterable[str], schema: str | None) -> TextClause:
    """Return the statement that notes, in a comment on our version table, whether one of the tables exists already.

    A comment is part of a dump, and needs no right to be read. With no schema it is about the first of the
    `search_path`, where tables are created.
    """
    place = "quote_ident(current_schema())" if schema is None else literal(identifier(schema))
    found = " OR ".join(f"to_regclass({place} || {literal('.' + table)}) IS NOT NULL" for table in tables)
    version = qualified(VERSION_TABLE, schema)
    comment = f"{ADOPTED} the tables were there before, and stay when these revisions are undone"
    body = f"""
    IF {found} THEN
        COMMENT ON TABLE {version} IS {literal(comment)};
    ELSIF obj_description(to_regclass({literal(version)}), 'pg_class') IS NOT NULL THEN
        COMMENT ON TABLE {version} IS NULL;
    END IF;
    """
    return statement(block(body))


def ours_alone(schema: str | None) -> str:
    """Return the condition that we have created the tables, and that the stock saver does not know of them."""
    comment = f"obj_description(to_regclass({literal(qualified(VERSION_TABLE, schema))}), 'pg_class')"
    return (
        f"to_regclass({literal(qualified(STOCK_TABLE, schema))}) IS NULL"
        f" AND left(coalesce({comment}, ''), {len(ADOPTED)}) <> {literal(ADOPTED)}"
    )

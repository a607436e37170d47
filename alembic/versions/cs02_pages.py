"""Create the tables of shared pages; a downgrade turns paged values back into plain blobs."""

from __future__ import annotations

import sqlalchemy as sa

from alembic import op
from checkpoint_store.migrations.ddl import block, literal, ours_alone, refuse_foreign, statement
from checkpoint_store.migrations.placement import distribute_new
from checkpoint_store.migrations.revision import downgrade_from, upgrade_to
from checkpoint_store.schema import qualified

revision = "cs02_pages"
down_revision = "cs01_baseline"
branch_labels = None
depends_on = None

TABLES = {
    "checkpoint_pages": {"thread_id": "text", "digest": "bytea", "page": "bytea"},
    "checkpoint_threads": {"thread_id": "text", "epoch": "bigint"},
}


@upgrade_to(revision, down_revision)
def upgrade(schema: str | None) -> None:
    op.execute(refuse_foreign(TABLES, schema))
    op.create_table(
        "checkpoint_pages",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("page", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("thread_id", "digest", name=op.f("checkpoint_pages_pkey")),
        schema=schema,
        if_not_exists=True,
    )
    op.create_table(
        "checkpoint_threads",
        sa.Column("thread_id", sa.Text, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("thread_id", name=op.f("checkpoint_threads_pkey")),
        schema=schema,
        if_not_exists=True,
    )
    # Pages stay in their rows, compressed: to move one elsewhere costs more than to store it.
    pages = qualified("checkpoint_pages", schema)
    op.execute(statement(f"ALTER TABLE {pages} SET (toast_tuple_target = 128), ALTER COLUMN page SET STORAGE MAIN"))
    compress_faster(schema)
    op.execute(distribute_new(TABLES, schema))


@downgrade_from(revision, down_revision)
def downgrade(schema: str | None) -> None:
    blobs, pages = qualified("checkpoint_blobs", schema), qualified("checkpoint_pages", schema)
    # An entry of a recipe is 255 and the digest of a page, or a length and that number of bytes. One thread after the
    # other, since Citus has the pages of a thread on one node.
    body = f"""
    FOR thread IN SELECT DISTINCT thread_id FROM {blobs} WHERE type = 'pages' LOOP
        UPDATE {blobs} AS b
        SET type = 'msgpack', blob = (
            SELECT string_agg(
                CASE get_byte(b.blob, at) WHEN 255 THEN (
                    SELECT p.page FROM {pages} AS p
                    WHERE p.thread_id = thread AND p.digest = substring(b.blob FROM at + 2 FOR 16)
                ) ELSE substring(b.blob FROM at + 2 FOR get_byte(b.blob, at)) END,
                '' ORDER BY at
            )
            FROM generate_series(0, length(b.blob) - 17, 17) AS at
        )
        WHERE b.thread_id = thread AND b.type = 'pages';
    END LOOP;
    """
    op.execute(statement(block(body, "thread text;")))
    op.drop_table("checkpoint_threads", schema=schema)
    op.drop_table("checkpoint_pages", schema=schema)


def compress_faster(schema: str | None) -> None:
    """Have values compressed by LZ4 where the server has it: storing one of 9 kB takes a third less time.

    Not in tables that another application uses too, nor in those that Citus has distributed, where it refuses to.
    """
    columns = {"checkpoint_blobs": "blob", "checkpoint_writes": "blob", "checkpoint_pages": "page"}
    statements = "".join(
        f"""
        BEGIN
            EXECUTE {literal(f"ALTER TABLE {qualified(table, schema)} ALTER COLUMN {column} SET COMPRESSION lz4")};
        EXCEPTION WHEN feature_not_supported THEN NULL;
        END;"""
        for table, column in columns.items()
    )
    body = f"""
    IF {ours_alone(schema)} AND EXISTS (
        SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)
    ) THEN
        {statements}
    END IF;
    """
    op.execute(statement(block(body)))

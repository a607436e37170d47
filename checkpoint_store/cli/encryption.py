"""The command `reencrypt`, with keys from the environment."""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from checkpoint_store.cli import output
from checkpoint_store.cli.connection import Json, Schema, Url, on_engine
from checkpoint_store.cli.text import counted
from checkpoint_store.errors import InvalidOption, UnreadableValue

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from checkpoint_store.serde.encryption import KeyRing
    from checkpoint_store.tools.reencryption import Reencryption, Unencrypted

KEYS = "CHECKPOINT_STORE_KEYS"


def reencrypt(
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="How many rows to rewrite at a time.")] = 50,
    url: Url = "",
    schema: Schema = None,
    as_json: Json = False,
) -> None:
    """Encrypt everything that is stored with the newest key.

    Values in clear, inline or in pages, and values with an older key are rewritten in batches. The database may be in
    use by savers that write with the newest key. After an interruption the same command goes on with the rest.

    CHECKPOINT_STORE_KEYS has the AES keys: each of 16, 24 or 32 bytes in Base64, the newest first, with commas between.
    A value that none of them opens stays as it is, and the exit code is 1.

    \b
    Example:
      export CHECKPOINT_STORE_KEYS="$NEW_KEY,$OLD_KEY"
      checkpoint-store reencrypt
    """
    key_ring = _key_ring()

    async def work(engine: AsyncEngine) -> tuple[Reencryption, Unencrypted]:
        from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

        from checkpoint_store.tools import reencryption

        serde = EncryptedSerializer(key_ring)
        with output.progress("rewriting", "values") as advance:
            done = await reencryption.reencrypt(
                *(engine, serde, serde),
                schema=schema,
                batch_size=batch_size,
                on_progress=lambda report: advance(report.blobs + report.writes + report.scalars + report.current),
            )
        return done, await reencryption.count_unencrypted(engine, schema=schema)

    done, plain = on_engine(url, schema, work, "what was rewritten stays so; the same command goes on with the rest")
    if as_json:
        output.document({**asdict(done), "unencrypted": plain._asdict()})
    else:
        rewritten = (counted(done.blobs, "value"), counted(done.writes, "pending write"))
        output.line(f"encrypted {', '.join(rewritten)} and {counted(done.scalars, 'inline value')}")
        output.line(f"{done.current:,} had the newest key, {sum(plain):,} are in clear")
        if done.busy:
            output.note(f"{done.busy:,} changed meanwhile: run it again")
    if done.unreadable:
        unread = counted(done.unreadable, "value")
        raise UnreadableValue(f"{unread} can't be opened with these keys, and stay as before")


def _key_ring() -> KeyRing:
    """Return the keys of the environment."""
    from checkpoint_store.serde.encryption import KeyRing

    texts = [text.strip() for text in os.environ.get(KEYS, "").split(",") if text.strip()]
    if not texts:
        raise InvalidOption(f"no keys: set {KEYS} to AES keys in Base64, the newest first, with commas between")
    try:
        keys = [base64.b64decode(text, validate=True) for text in texts]
    except binascii.Error:
        raise InvalidOption(f"the keys in {KEYS} must be in Base64; one is not") from None
    return KeyRing.aes(*keys)

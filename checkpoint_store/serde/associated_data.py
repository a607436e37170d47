"""Where an encrypted value stands, and a serializer whose cipher binds it to that; no I/O.

LangGraph's `EncryptedSerializer` authenticates a value's bytes, not its type, nor where it belongs. A `KeyRing` of AES
keys is given both, as associated data: a value whose type was changed, or that was moved, is no longer opened.
"""

from __future__ import annotations

from typing import Any, Protocol, cast

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from checkpoint_store.serde import jsonb
from checkpoint_store.serde.arguments import has_methods

Place = tuple[object, ...]
"""What a value is, and the key it is found by. Not the thread: copies are made on the server."""


class Binding(Protocol):
    """A cipher that binds what it encrypts to a place."""

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt what is opened at this place only. Returns the cipher's name and the ciphertext."""

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt what was encrypted for this place; raises an exception for anything else."""


def of_value(checkpoint_ns: str, channel: str, version: object) -> Place:
    """Return the place of a channel's value, stored under a version."""
    return "value", checkpoint_ns, channel, version


def of_write(checkpoint_ns: str, checkpoint_id: str | None, channel: str) -> Place:
    """Return the place of a pending write of a checkpoint's."""
    return "write", checkpoint_ns, checkpoint_id, channel


def binding_of(serde: SerializerProtocol) -> Binding | None:
    """Return the cipher of a serializer that encrypts as LangGraph's does, if it binds."""
    if isinstance(serde, EncryptedSerializer) and has_methods(serde.cipher, "encrypt_at", "decrypt_at"):
        kind = type(serde)
        if (kind.dumps_typed, kind.loads_typed) == (EncryptedSerializer.dumps_typed, EncryptedSerializer.loads_typed):
            return cast("Binding", serde.cipher)
    return None


def dumps(serde: SerializerProtocol, value: Any, place: Place) -> tuple[str, bytes]:
    """Return type and bytes of a value that belongs to a place."""
    if (cipher := binding_of(serde)) is None:
        return serde.dumps_typed(value)
    kind, plaintext = cast("EncryptedSerializer", serde).serde.dumps_typed(value)
    name, ciphertext = cipher.encrypt_at(associated(kind, place), bytes(plaintext))
    return f"{kind}+{name}", ciphertext


def loads(serde: SerializerProtocol, kind: str, blob: bytes, place: Place) -> Any:
    """Return the value that was stored at a place."""
    inner, encrypted, name = kind.partition("+")
    if not encrypted or (cipher := binding_of(serde)) is None:
        return serde.loads_typed((kind, blob))
    plaintext = cipher.decrypt_at(associated(inner, place), name, blob)
    return cast("EncryptedSerializer", serde).serde.loads_typed((inner, plaintext))


def associated(kind: str, place: Place) -> bytes:
    """Return a value's type and place as the cipher gets them; none of the parts has a NUL in it."""
    parts = [part if isinstance(part, str) else jsonb.text_of(part, "version") for part in (kind, *place)]
    return "\0".join(parts).encode()

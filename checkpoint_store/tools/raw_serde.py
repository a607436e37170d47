"""LangGraph's serializer, so that what it reads and writes again stays as it is, byte for byte.

Objects are left packed: nothing is imported and nothing is constructed, so it needs none of the application's code, and
can't be made to call anything by what is stored.
"""

from __future__ import annotations

from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpoint_store.errors import UnreadableValue


class PassthroughSerializer(JsonPlusSerializer):
    """Copies values; those that only another serializer can read, such as encrypted and pickled ones, it refuses."""

    def __init__(self) -> None:
        super().__init__(__unpack_ext_hook__=_packed)

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        """Return a value with its objects still packed."""
        if data[0] not in _KINDS:
            raise UnreadableValue(
                f"a value of type {data[0]!r} can't be copied as it is. Use checkpoint_store.transfer, with savers "
                "that have the serializer it was written with."
            )
        return super().loads_typed(data)


_KINDS = frozenset({"null", "bytes", "bytearray", "msgpack"})


def _packed(code: int, content: bytes) -> Any:
    if code == EXT_DELTA_SNAPSHOT:
        # Savers have to know one when they see it.
        return _DeltaSnapshot(ormsgpack.unpackb(content, ext_hook=_packed, option=ormsgpack.OPT_NON_STR_KEYS))
    return ormsgpack.Ext(code, content)

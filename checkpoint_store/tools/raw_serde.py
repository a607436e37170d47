"""A serializer that reads and writes values without a change, byte for byte.

Objects stay packed: nothing is imported, constructed or called, so it needs none of the application's code, and stored
values can do no harm.
"""

from __future__ import annotations

from typing import Any

import ormsgpack
from langgraph.checkpoint.serde.jsonplus import EXT_DELTA_SNAPSHOT, JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from checkpoint_store.errors import UnreadableValue


class PassthroughSerializer(JsonPlusSerializer):
    """LangGraph's serializer without objects; it refuses encrypted and pickled values, which it can't read."""

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
        # Savers look for this class.
        return _DeltaSnapshot(ormsgpack.unpackb(content, ext_hook=_packed, option=ormsgpack.OPT_NON_STR_KEYS))
    return ormsgpack.Ext(code, content)

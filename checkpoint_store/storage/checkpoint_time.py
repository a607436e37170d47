"""The time in a checkpoint's id, which is a version 6 UUID where LangGraph made it; no I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from uuid import UUID

_UUID6 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

# The time in a UUID counts from here (https://www.rfc-editor.org/rfc/rfc9562#section-5.1).
_EPOCH = datetime(1582, 10, 15, tzinfo=UTC)


def time_of(checkpoint_id: str) -> datetime | None:
    """Return when a checkpoint was made by the time in its id, None if it has none."""
    try:
        uuid = UUID(checkpoint_id)
        if uuid.version != 6:
            return None
        ticks = uuid.time_low << 28 | uuid.time_mid << 12 | uuid.time_hi_version & 0xFFF
        return _EPOCH + timedelta(microseconds=ticks // 10)
    except (ValueError, OverflowError):
        return None


def first_id_of(moment: datetime) -> str:
    """Return the least id that a checkpoint made at a moment may have."""
    ticks = (moment - _EPOCH) // timedelta(microseconds=1) * 10
    digits = f"{min(max(ticks, 0), 16**15 - 1):015x}"
    return f"{digits[:8]}-{digits[8:12]}-6{digits[12:]}-8000-000000000000"


def first_id_within(age: timedelta) -> str:
    """Return the least id that a checkpoint not older than an age may have."""
    try:
        return first_id_of(datetime.now(UTC) - age)
    except OverflowError:
        return first_id_of(_EPOCH)


def is_older(checkpoint_id: str, than: str) -> bool:
    """Return whether a checkpoint is older than an id; one without a time is not."""
    return checkpoint_id < than and _UUID6.fullmatch(checkpoint_id) is not None

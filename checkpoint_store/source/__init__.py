"""What the caller handed us -> operations on it: whose it is, on which loop or thread, in which transaction.

An **origin** lends connections, in sync style. An engine is shared: each operation borrows a connection, as a rule for
one statement that commits itself, so that no BEGIN and COMMIT travel with it. A connection or session is the caller's:
operations run in the transaction that is open there, one at a time, and nothing is begun, committed or rolled back.

A **source** runs operations on an origin: on the event loop that an async engine's connections live on, or, for a sync
engine's, in the calling thread.
"""

from checkpoint_store.source.base import Source
from checkpoint_store.source.handed import engine_source, source_on, source_within
from checkpoint_store.source.held import held
from checkpoint_store.source.looped import LoopSource
from checkpoint_store.source.retrying import RETRY_SECONDS

__all__ = ["RETRY_SECONDS", "LoopSource", "Source", "engine_source", "held", "source_on", "source_within"]

"""What the caller handed us -> a `Connection`: whose it is, on which loop, in which transaction.

An **engine** is shared: each operation borrows a connection, as a rule for one statement that commits itself, so that
no BEGIN and COMMIT travel with it. A **connection** is the caller's: operations run in the transaction that is open
there, one at a time, and nothing is begun, committed or rolled back.
"""

from checkpoint_store.source.base import Source
from checkpoint_store.source.connection import ConnectionSource
from checkpoint_store.source.engine import EngineSource

__all__ = ["ConnectionSource", "EngineSource", "Source"]

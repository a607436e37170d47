"""Encryption of stored values: a ring of keys, and re-encryption of what is stored."""

from checkpoint_store.serde.encryption import KeyRing
from checkpoint_store.tools.reencryption import Reencryption, Unencrypted, count_unencrypted, reencrypt

__all__ = ["KeyRing", "Reencryption", "Unencrypted", "count_unencrypted", "reencrypt"]

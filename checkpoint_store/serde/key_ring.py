"""Encryption of what is stored: keys that follow each other, and rows that were written before a key, or under another.

serde = EncryptedSerializer(KeyRing.aes(new_key, old_key))
saver = AsyncPostgresSaver(engine, serde=serde, require_encryption=True)
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from typing import Any

from langgraph.checkpoint.serde.base import CipherProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from checkpoint_store.errors import InvalidOption, NotInstalled, short_repr
from checkpoint_store.serde.arguments import flag, has_methods

KEY_BYTES = (16, 24, 32)
"""How long an AES key may be."""


_PART = 16


class KeyRing:
    """Several ciphers for LangGraph's `EncryptedSerializer`: the first one encrypts, any of them decrypts.

    Which key a value needs, trying tells: a cipher that authenticates refuses what isn't its own. A ring of AES keys,
    made by `aes`, binds what savers store to its type and place, so that nobody opens it who reads it elsewhere, or as
    something else; what other ciphers encrypt is stored as they alone would.

    Args:
        ciphers: The newest first.

    Raises:
        InvalidOption: If there is none, or one that is no cipher.
    """

    def __init__(self, *ciphers: CipherProtocol) -> None:
        if not ciphers:
            raise InvalidOption("a key ring without a key can't encrypt anything; pass at least one cipher")
        for cipher in ciphers:
            if not has_methods(cipher, "encrypt", "decrypt"):
                raise InvalidOption(
                    f"{short_repr(cipher)} is no cipher: it needs encrypt and decrypt, as KeyRing.aes() makes"
                )
        self._ciphers = ciphers

    @classmethod
    def aes(cls, *keys: bytes, bound_only: bool = False) -> KeyRing:
        """Make a ring of AES keys, each as for `EncryptedSerializer.from_pycryptodome_aes(key=...)`.

        It also opens what such a serializer has encrypted, which is bound to nothing.

        Args:
            keys: The newest first; of 16, 24 or 32 bytes each.
            bound_only: Whether savers refuse what is not bound to its place: once `reencrypt` has left none.

        Returns:
            The ring, for an `EncryptedSerializer`.

        Raises:
            InvalidOption: If there is none, or one of another length.
            NotInstalled: If the extra `encryption` is missing.
        """
        for key in keys:
            is_bytes = issubclass(type(key), bytes)
            if not is_bytes or bytes.__len__(key) not in KEY_BYTES:
                size = f"{bytes.__len__(key)} bytes" if is_bytes else type(key).__qualname__
                raise InvalidOption(f"an AES key has 16, 24 or 32 bytes, and this one is of {size}")
        try:
            return cls(*[_Aes(key, bound_only=flag(bound_only, "bound_only")) for key in keys])
        except ImportError as error:
            raise NotInstalled("AES is in an extra: pip install 'checkpoint-store[encryption]'") from error

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt with the newest key.

        Args:
            plaintext: What to encrypt.

        Returns:
            The cipher's name and the ciphertext.
        """
        return self._ciphers[0].encrypt(plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt with the key that fits.

        Args:
            ciphername: The cipher's name, as `encrypt` gave it.
            ciphertext: What to decrypt.

        Returns:
            The plaintext.

        Raises:
            ValueError: If none does.
        """
        return self._opened(lambda cipher: cipher.decrypt(ciphername, ciphertext))

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt with the newest key, so that it is opened at a place only, if its cipher can do that.

        Args:
            place: What the value is, and where it belongs.
            plaintext: What to encrypt.

        Returns:
            The cipher's name and the ciphertext.
        """
        newest = self._ciphers[0]
        return newest.encrypt_at(place, plaintext) if isinstance(newest, (_Aes, KeyRing)) else newest.encrypt(plaintext)

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt what belongs to a place, with the key that fits.

        Args:
            place: What the value is, and where it is read.
            ciphername: The cipher's name, as `encrypt_at` gave it.
            ciphertext: What to decrypt.

        Returns:
            The plaintext.

        Raises:
            ValueError: If no key does, or the value belongs elsewhere.
        """
        return self._opened(lambda cipher: _decrypt_at(cipher, place, ciphername, ciphertext))

    def is_current(self, place: bytes, ciphername: str, ciphertext: bytes) -> bool:
        """Tell whether a value is encrypted as the newest key would.

        Args:
            place: What the value is, and where it belongs.
            ciphername: The cipher's name.
            ciphertext: What was encrypted.
        """
        return _is_current(self._ciphers[0], place, ciphername, ciphertext)

    def _opened(self, decrypt: Callable[[CipherProtocol], bytes]) -> bytes:
        refusals = []
        for cipher in self._ciphers:
            try:
                return decrypt(cipher)
            except Exception as error:
                refusals.append(f"{type(error).__name__}: {error}")
        raise ValueError(f"none of {len(refusals)} keys fits ({'; '.join(dict.fromkeys(refusals))})")


class _Aes:
    """One AES key: what is bound to a place is encrypted with a key derived from it, all else as LangGraph does.

    So neither can be taken for the other, whatever their types say.
    """

    def __init__(self, key: bytes, *, bound_only: bool) -> None:
        self._unbound = EncryptedSerializer.from_pycryptodome_aes(key=key).cipher
        self._key = hmac.digest(key, b"checkpoint_store: bound to a place", "sha256")
        self._bound_only = bound_only

    def encrypt(self, plaintext: bytes) -> tuple[str, bytes]:
        return self._unbound.encrypt(plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        if ciphername == _BOUND:
            raise ValueError("the value is bound to its place, which only savers of checkpoint_store know")
        return self._unbound.decrypt(ciphername, ciphertext)

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        cipher = self._cipher(place, os.urandom(_PART))
        ciphertext, tag = cipher.encrypt_and_digest(plaintext)
        return _BOUND, cipher.nonce + tag + ciphertext

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        if ciphername != _BOUND:
            if self._bound_only:
                raise ValueError("the value is not bound to its place, and bound_only refuses it")
            return self.decrypt(ciphername, ciphertext)
        nonce, tag, rest = ciphertext[:_PART], ciphertext[_PART : 2 * _PART], ciphertext[2 * _PART :]
        plaintext: bytes = self._cipher(place, nonce).decrypt_and_verify(rest, tag)
        return plaintext

    def _cipher(self, place: bytes, nonce: bytes) -> Any:
        from Crypto.Cipher import AES

        cipher = AES.new(self._key, AES.MODE_EAX, nonce=nonce)
        cipher.update(place)
        return cipher


_BOUND = "aes-bound"
"""How values are marked that are bound to their place."""


def _is_current(cipher: CipherProtocol, place: bytes, name: str, blob: bytes) -> bool:
    """Tell whether a cipher would have encrypted it so."""
    if isinstance(cipher, KeyRing):
        return cipher.is_current(place, name, blob)
    if isinstance(cipher, _Aes) and name != _BOUND:
        return False
    try:
        _decrypt_at(cipher, place, name, blob)
    except Exception:
        return False
    return True


def _decrypt_at(cipher: CipherProtocol, place: bytes, name: str, blob: bytes) -> bytes:
    if isinstance(cipher, (_Aes, KeyRing)):
        return cipher.decrypt_at(place, name, blob)
    return cipher.decrypt(name, blob)

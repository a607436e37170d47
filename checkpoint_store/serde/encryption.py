"""Encryption of stored values: rings of keys, and serializers that bind a value to its type and its place.

LangGraph's `EncryptedSerializer` authenticates a value's bytes, not its type, nor where it belongs. A `KeyRing` of AES
keys is given both, as associated data: a value whose type was changed, or that was moved, can't be opened any more.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable
from typing import Any, Protocol, cast

from langgraph.checkpoint.serde.base import CipherProtocol, SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer

from checkpoint_store.errors import InvalidOption, NotInstalled, short_repr
from checkpoint_store.serde import jsonb
from checkpoint_store.serde.arguments import flag, has_methods

KEY_BYTES = (16, 24, 32)
"""The sizes that an AES key may have."""

_BOUND = "aes-bound"
"""The mark of values that are bound to their place."""

_PART = 16
"""The size of a nonce and of a tag."""

Place = tuple[object, ...]
"""The kind of a value, and the key it is found by. Not the thread: copies are made on the server."""


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
                    f"a cipher must have encrypt and decrypt, as those of KeyRing.aes() have; {short_repr(cipher)} "
                    "does not"
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
            if not isinstance(key, bytes) or len(key) not in KEY_BYTES:
                size = f"of {len(key)} bytes" if isinstance(key, bytes) else f"a {type(key).__qualname__}"
                raise InvalidOption(f"an AES key must be of 16, 24 or 32 bytes, not {size}")
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
        return is_current(self._ciphers[0], place, ciphername, ciphertext)

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


def is_current(cipher: CipherProtocol, place: bytes, name: str, blob: bytes) -> bool:
    """Return whether a cipher would encrypt a value as it is encrypted."""
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


class Binding(Protocol):
    """A cipher that binds what it encrypts to a place."""

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt a value that can be opened at this place only; return the cipher's name and the ciphertext."""

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt a value that was encrypted for this place; raise an exception for any other."""


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
    return "\0".join(parts).encode(errors="surrogatepass")

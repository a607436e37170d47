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

    The key of a value is found by trying: a cipher that authenticates refuses another one's values. A ring of AES keys,
    made by `aes`, binds the values that savers store to their type and place, so that they can't be decrypted elsewhere
    or as another type; values that other ciphers encrypt are stored as by those alone.

    Args:
        ciphers: The newest first.

    Raises:
        InvalidOption: If there is none, or one is not a cipher.
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

        It also decrypts values of such a serializer, which are bound to nothing.

        Args:
            keys: The newest first; of 16, 24 or 32 bytes each.
            bound_only: Whether savers refuse values that are not bound to their place, once `reencrypt` has left none.

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
            plaintext: The bytes to encrypt.

        Returns:
            The cipher's name and the ciphertext.
        """
        return self._ciphers[0].encrypt(plaintext)

    def decrypt(self, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt with the key that fits.

        Args:
            ciphername: The cipher's name, as `encrypt` gave it.
            ciphertext: The bytes to decrypt.

        Returns:
            The plaintext.

        Raises:
            ValueError: If none fits.
        """
        return self._opened(lambda cipher: cipher.decrypt(ciphername, ciphertext))

    def encrypt_at(self, place: bytes, plaintext: bytes) -> tuple[str, bytes]:
        """Encrypt with the newest key, for one place only if its cipher can do that.

        Args:
            place: The value's type and place, as associated data.
            plaintext: The bytes to encrypt.

        Returns:
            The cipher's name and the ciphertext.
        """
        newest = self._ciphers[0]
        return newest.encrypt_at(place, plaintext) if isinstance(newest, (_Aes, KeyRing)) else newest.encrypt(plaintext)

    def decrypt_at(self, place: bytes, ciphername: str, ciphertext: bytes) -> bytes:
        """Decrypt a value of a place, with the key that fits.

        Args:
            place: The type and place it is read as, as associated data.
            ciphername: The cipher's name, as `encrypt_at` gave it.
            ciphertext: The bytes to decrypt.

        Returns:
            The plaintext.

        Raises:
            ValueError: If no key does, or the value belongs elsewhere.
        """
        return self._opened(lambda cipher: _decrypt_at(cipher, place, ciphername, ciphertext))

    def is_current(self, place: bytes, ciphername: str, ciphertext: bytes) -> bool:
        """Return whether a value is encrypted as by the newest key.

        Args:
            place: The value's type and place, as associated data.
            ciphername: The cipher's name.
            ciphertext: The encrypted bytes.
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
    """One AES key: values of a place are encrypted with a key derived from it, all others as LangGraph does.

    So neither can be taken for the other, whatever the stored types are.
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
    """Return the place of a pending write of a checkpoint."""
    return "write", checkpoint_ns, checkpoint_id, channel


def binding_of(serde: SerializerProtocol) -> Binding | None:
    """Return the cipher of a serializer that encrypts as LangGraph's does, if it binds."""
    if isinstance(serde, EncryptedSerializer) and has_methods(serde.cipher, "encrypt_at", "decrypt_at"):
        kind = type(serde)
        if (kind.dumps_typed, kind.loads_typed) == (EncryptedSerializer.dumps_typed, EncryptedSerializer.loads_typed):
            return cast("Binding", serde.cipher)
    return None


def dumps(serde: SerializerProtocol, value: Any, place: Place) -> tuple[str, bytes]:
    """Return the type and the bytes of a value of a place."""
    if (cipher := binding_of(serde)) is None:
        return serde.dumps_typed(value)
    kind, plaintext = cast("EncryptedSerializer", serde).serde.dumps_typed(value)
    name, ciphertext = cipher.encrypt_at(associated(kind, place), bytes(plaintext))
    return f"{kind}+{name}", ciphertext


def loads(serde: SerializerProtocol, kind: str, blob: bytes, place: Place) -> Any:
    """Return the value of a place."""
    inner, encrypted, name = kind.partition("+")
    if not encrypted or (cipher := binding_of(serde)) is None:
        return serde.loads_typed((kind, blob))
    plaintext = cipher.decrypt_at(associated(inner, place), name, blob)
    return cast("EncryptedSerializer", serde).serde.loads_typed((inner, plaintext))


def associated(kind: str, place: Place) -> bytes:
    """Return a value's type and place as associated data; none of the parts has a NUL in it."""
    parts = [part if isinstance(part, str) else jsonb.text_of(part, "version") for part in (kind, *place)]
    return "\0".join(parts).encode(errors="surrogatepass")

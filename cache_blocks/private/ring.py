"""The key ring: keys by id, of which the first seals and all open, and one that names are made from.

Written as ``names:BASE64,2026-11:BASE64,2026-05:BASE64``, each of 32 random bytes. ``names`` seals nothing. Keys of
entries, blobs, tags and file names are keyed digests under it, and since identity must not change when keys rotate, it
stays when they do: with another one nothing is found again, and nothing wrong is found either.
"""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import Final

from blake3 import blake3

from cache_blocks.errors import ConfigurationError

KEY_BYTES: Final = 32
CHECK_BYTES: Final = 8
MAX_ID_LETTERS: Final = 16
NAMES: Final = "names"
_ID: Final = re.compile(rf"[a-z0-9][a-z0-9._-]{{0,{MAX_ID_LETTERS - 1}}}")
_PURPOSE: Final = b"prefect-cache-blocks 1 "
WAY_OUT: Final = "`cache-blocks keys new` prints a ring"


@dataclass(frozen=True)
class Key:
    """One key that seals.

    Attributes:
        id: What people call it.
        secret: 32 bytes.
        check: Eight bytes that tell it from another one of the same id.
    """

    id: str
    secret: bytes = field(repr=False)
    check: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "check", derive(self.secret, b"check", length=CHECK_BYTES))

    @property
    def label(self) -> bytes:
        """What sealed bytes say of their key: id and check, always of the same length."""
        return self.id.encode().ljust(MAX_ID_LETTERS, b"\0") + self.check


@dataclass(frozen=True)
class KeyRing:
    """Keys that seal, the current one first, and the secret that names are made from.

    Attributes:
        keys: The keys.
        names: The secret.
        by_label: The keys by what sealed bytes say of them.
    """

    keys: tuple[Key, ...]
    names: bytes = field(repr=False)
    by_label: dict[bytes, Key] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_label", {key.label: key for key in self.keys})

    @classmethod
    def parse(cls, text: str) -> KeyRing:
        """Return the ring that a setting writes down.

        Raises:
            ConfigurationError: It is malformed; the message never holds a part of a key.
        """
        secrets_by_id: dict[str, bytes] = {}
        for number, member in enumerate(filter(None, (part.strip() for part in text.split(","))), start=1):
            name, colon, encoded = member.partition(":")
            if not colon or not _ID.fullmatch(name):
                raise ConfigurationError(
                    f"CACHE_BLOCKS_PRIVATE_KEYS: key number {number} is not ID:BASE64 with an id of 1 to "
                    f"{MAX_ID_LETTERS} lower-case letters, digits, '.', '_' or '-'; {WAY_OUT}"
                )
            if name in secrets_by_id:
                raise ConfigurationError(f"CACHE_BLOCKS_PRIVATE_KEYS: two keys have the id {name!r}; give each its own")
            secrets_by_id[name] = _decoded(name, encoded)
        names = secrets_by_id.pop(NAMES, None)
        if names is None or not secrets_by_id:
            missing = f"no key {NAMES!r}" if names is None else f"no key besides {NAMES!r}"
            raise ConfigurationError(f"CACHE_BLOCKS_PRIVATE_KEYS has {missing}; {WAY_OUT}")
        return cls(tuple(Key(name, secret) for name, secret in secrets_by_id.items()), names)

    @property
    def current(self) -> Key:
        """The key that seals."""
        return self.keys[0]

    def naming(self, namespace: str) -> Naming:
        """Return what makes names in a namespace; the same content has another name in every namespace."""
        return Naming(derive(self.names, b"names " + namespace.encode()))


@dataclass(frozen=True)
class Naming:
    """Makes names that only who has the ring can make: keyed BLAKE3 digests."""

    secret: bytes = field(repr=False)

    def digest(self, what: str, text: str) -> str:
        """Return the name of a text, 64 hexadecimal digits.

        Args:
            what: What is named, such as ``key``: equal texts have different names as different things.
            text: The text.
        """
        named = f"{what}\0{text}".encode("utf-8", "surrogatepass")
        return blake3(named, key=self.secret).hexdigest()


def derive(secret: bytes, purpose: bytes, *, salt: bytes | None = None, length: int = KEY_BYTES) -> bytes:
    """Return a key for one purpose, by HKDF with SHA-256 (https://www.rfc-editor.org/rfc/rfc5869)."""
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), length, salt, _PURPOSE + purpose).derive(secret)


def new_key(name: str) -> str:
    """Return a new key as a ring writes it."""
    return f"{name}:{base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode()}"


def new_ring(name: str = "") -> str:
    """Return a new ring; without a name its key is called by the month."""
    return f"{new_key(NAMES)},{new_key(name or time.strftime('%Y-%m', time.gmtime()))}"


def _decoded(name: str, encoded: str) -> bytes:
    try:
        secret = base64.b64decode(encoded.translate(str.maketrans("-_", "+/")), validate=True)
    except (binascii.Error, ValueError):
        secret = b""
    if len(secret) != KEY_BYTES:
        raise ConfigurationError(
            f"CACHE_BLOCKS_PRIVATE_KEYS: key {name!r} is not {KEY_BYTES} bytes in base64; {WAY_OUT}"
        ) from None
    return secret

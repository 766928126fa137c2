"""The error tree of the cache.

CacheError
├── ConfigurationError           a kind, a setting or a decorated task that cannot work as declared
├── InvalidKeyError              a key, tag or namespace that is not well-formed
├── UnhashableArgumentError      a task argument without a deterministic digest
├── UnsupportedValueError        a result that cannot be stored and given back unchanged
├── CorruptEntryError            bytes that are not what was written
│   └── UnknownVersionError      an envelope of another version of this package
├── TierError                    a tier did not do what it was asked; `tier` names it
│   ├── TierUnavailableError     it is down, too slow, or its breaker is open
│   │   └── TierFullError        it takes nothing more, and still answers
│   └── EntryRefusedError        the entry does not belong there (too large, or file contents)
├── PrivateKeyMissingError       the key ring does not have the key that something was sealed with
├── BlobMissingError             the bytes of a CachedFile are in no place that this process reaches
└── InvalidationIncompleteError  SQL knows of an invalidation, but a tier could not be told yet

A pipeline never sees these from a lookup or a write-back: there they become a miss with a reason, an
event and one line in the log. They are raised where a person declares, configures, or asks directly.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class CacheError(Exception):
    """Base class of everything that this package raises on purpose."""


class ConfigurationError(CacheError):
    """A kind, a setting or a decorated task that cannot work as declared."""


class InvalidKeyError(CacheError, ValueError):
    """A key, tag or namespace that is not well-formed."""


class UnhashableArgumentError(CacheError, TypeError):
    """A task argument without a deterministic digest.

    Attributes:
        argument: Path to the value, such as ``options.model``.
        type_name: Qualified name of the value's type.
    """

    def __init__(self, argument: str, type_name: str, why: str = "") -> None:
        self.argument = argument
        self.type_name = type_name
        parameter = re.split(r"[.\[{ ]", argument, maxsplit=1)[0]
        super().__init__(
            f"argument {argument!r} of type {type_name} has no deterministic digest{f' ({why})' if why else ''}; "
            f"leave it out of the key with cache_ignore=({parameter!r},), or pass a "
            "value that has one: JSON-able data, a dataclass, a pydantic model, a Path or a CachedFile"
        )

    def __reduce__(self) -> tuple[type[UnhashableArgumentError], tuple[str, str]]:
        return type(self), (self.argument, self.type_name)


class UnsupportedValueError(CacheError, TypeError):
    """A result that cannot be stored and given back unchanged."""


class CorruptEntryError(CacheError):
    """Bytes from a tier that are not what was written there."""


class UnknownVersionError(CorruptEntryError):
    """An envelope that another version of this package wrote."""


class PrivateKeyMissingError(CacheError):
    """The key ring does not have the key that something was sealed with, or there is no ring.

    Attributes:
        key_id: Id of the key as the sealed bytes have it; empty where any key would do.
    """

    def __init__(self, key_id: str = "") -> None:
        self.key_id = key_id
        super().__init__(
            f"the ring has no key like the {key_id!r} that sealed it"
            if key_id
            else "there is no key ring; set CACHE_BLOCKS_PRIVATE_KEYS to what `cache-blocks keys new` prints"
        )

    def __reduce__(self) -> tuple[type[PrivateKeyMissingError], tuple[str]]:
        return type(self), (self.key_id,)


class TierError(CacheError):
    """A tier did not do what it was asked.

    Attributes:
        tier: Name of the tier.
    """

    def __init__(self, tier: str, why: str) -> None:
        self.tier = tier
        self.why = why
        super().__init__(f"{tier}: {why}")

    def __reduce__(self) -> tuple[type[TierError], tuple[str, str]]:
        return type(self), (self.tier, self.why)


class TierUnavailableError(TierError):
    """The tier is down, too slow, or its circuit breaker is open."""


class TierFullError(TierUnavailableError):
    """The tier has no room for this; it still answers, and is asked on."""


class EntryRefusedError(TierError):
    """The entry does not belong in this tier: too large, or contents of a file."""


class BlobMissingError(CacheError, FileNotFoundError):
    """The bytes of a `CachedFile` are in no place that this process reaches, or are damaged."""


class InvalidationIncompleteError(CacheError):
    """SQL knows of the invalidation, but the named tiers could not be told yet.

    The rest is retried when the tier answers again and by maintenance; until then other processes may
    still be served what was invalidated from those tiers.

    Attributes:
        told: Tiers that know.
        untold: Tiers that do not.
        entries: How many entries SQL counted under what was invalidated.
    """

    def __init__(self, told: Sequence[str], untold: Sequence[str], entries: int) -> None:
        self.told = tuple(told)
        self.untold = tuple(untold)
        self.entries = entries
        super().__init__(
            f"invalidated in {', '.join(told)}, but {', '.join(untold)} could not be told; it is retried as soon "
            "as it answers, or run `cache-blocks gc` once it is back"
        )

    def __reduce__(self) -> tuple[type[InvalidationIncompleteError], tuple[object, ...]]:
        return type(self), (self.told, self.untold, self.entries)

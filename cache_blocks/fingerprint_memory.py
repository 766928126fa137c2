"""What is known of versions: what this process has read itself, and what others have noted down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from pydantic import SecretStr

from cache_blocks.fingerprint_memo import DigestMemo, Known

if TYPE_CHECKING:
    from cache_blocks.settings import CacheSettings
    from cache_blocks.versions import Version

_SETTLED_SECONDS: Final = 2.1
"""How long a version must have been there: FAT's clock ticks every two seconds, and the kernel's lags behind a bit."""
_KNOWN: Final = 50_000

read_here: dict[bytes, Known] = {}
told: dict[bytes, Known] = {}
"""What other processes have read: good enough for a key, not for finding damage."""


def recall(identities: Sequence[bytes], memo: DigestMemo | None) -> dict[bytes, Known]:
    """Return what is known of versions, by their identities; without a memo, what this process has read itself."""
    here = {identity: known for identity in identities if (known := read_here.get(identity)) is not None}
    if memo is None:
        return here
    others = {identity: known for identity in identities if (known := told.get(identity)) is not None}
    if unheard := [identity for identity in identities if identity not in here and identity not in others]:
        found = memo.recall(unheard)
        _add(told, {identity: known for identity, known in found.items() if known.digest})
        others |= found
    return others | {identity: known for identity, known in here.items() if known.digest or identity not in others}


def remember(news: Mapping[bytes, Known], memo: DigestMemo | None) -> None:
    """Note what has been found out by reading; in the memo too, if there is one."""
    _add(read_here, news)
    if memo is not None:
        memo.keep(news)


def worth_remembering(version: Version, digest: str, began: float, seen: Known | None) -> Known | None:
    """Return what may be remembered of a version after reading it.

    Times are only as fine as the clock that gives them, so that a version which is younger could still change and look
    the same. Of one whose age cannot be told, it is noted when it was first seen.

    Args:
        version: What was there when reading began, and still was when it ended.
        digest: Of the bytes.
        began: When reading began, in seconds since the epoch.
        seen: What was known of the version before.
    """
    since = version.since
    if since == math.inf:
        since = min(seen.since, began) if seen else began
    if began - since > _SETTLED_SECONDS:
        return Known(digest, since)
    return Known("", since) if version.since == math.inf else None


def forget(digests: Iterable[str]) -> int:
    """Erase all versions with these digests from this process and from the memo; return how many the memo had.

    Raises:
        TierUnavailableError: The memo cannot be changed now.
    """
    erased = set(digests)
    for known in (read_here, told):
        for identity in [identity for identity, one in list(known.items()) if one.digest in erased]:
            known.pop(identity, None)
    return DigestMemo(_settings().home / "digests").forget(erased)


def shared_memo() -> DigestMemo | None:
    """Return the memo of this process's settings; none if the cache is off."""
    from cache_blocks.settings import settings_environment

    return _memo_in(settings_environment())


@lru_cache(maxsize=8)
def _memo_in(_environment: tuple[tuple[str, str], ...]) -> DigestMemo | None:
    try:
        settings = _settings()
    except ValueError:  # whoever makes the cache hears of it
        return None
    return None if settings.mode == "off" else DigestMemo(settings.home / "digests", writes=settings.mode == "on")


def _settings() -> CacheSettings:
    """Read the settings, without the SQLAlchemy that it takes to name the default database."""
    from cache_blocks.settings import CacheSettings

    return CacheSettings(database_url=SecretStr("sqlite://"))


def _add(to: dict[bytes, Known], known: Mapping[bytes, Known]) -> None:
    """Add without a lock, which a fork could inherit locked; each step is one of the interpreter's."""
    if len(to) + len(known) > _KNOWN:
        to.clear()
    to.update(known)

"""What a call, its names and its result become when its kind is private.

A private call is looked up and stored under a key that only who has the ring can make; its payload and the values in
its manifest are sealed; its tags, its subject and the digests of its inputs are names that say nothing. Tiers, events
and reports see no more than that, because it is done before they come in.
"""

from __future__ import annotations

import base64
import binascii
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import orjson

from cache_blocks import codec, forking
from cache_blocks.entry import Entry, Lookup, Outcome
from cache_blocks.errors import CacheError, ConfigurationError, CorruptEntryError, PrivateKeyMissingError
from cache_blocks.plan import IN_CLEAR, KEY_MISSING
from cache_blocks.private.ring import KeyRing, Naming
from cache_blocks.private.sealing import id_of, is_sealed, label_of, seal, unseal

if TYPE_CHECKING:
    from cache_blocks.calls import Call
    from cache_blocks.events import Origin
    from cache_blocks.kinds import CacheKind
    from cache_blocks.settings import CacheSettings

logger = logging.getLogger("cache_blocks")

RingSource = Callable[[str], str]
"""Returns the ring that is kept under a name, as a setting would write it."""

RECORDING: Final = "recording:"
"""What the tag of a recording begins with; it stays in sight, so that `forget` can tell recordings apart."""
_NAME_LETTERS: Final = 24
_HIDDEN: Final = "private"
_RETRY_SECONDS: Final = 30.0
_sources: list[RingSource] = []


def take_rings_from(source: RingSource) -> None:
    """Let key rings that settings name be read by this function; called by what faces a place that keeps secrets."""
    _sources[:] = [source]


class Privacy:
    """The privacy of one cache. Its ring is read when something private is first met.

    Args:
        settings: Say where the ring is, and whether everything is private.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self._text = settings.private_keys.get_secret_value()
        self._block = settings.private_keys_block
        self._namespace = settings.namespace
        self._lock = forking.lock()
        self._ring: KeyRing | None = None
        self._naming: Naming | None = None
        self._failure: CacheError | None = None
        self._next_try = 0.0
        self._told: set[str] = set()
        self.everything = settings.private

    @property
    def has_ring(self) -> bool:
        """Whether the settings name a ring."""
        return bool(self._text or self._block)

    @property
    def ring(self) -> KeyRing:
        """The key ring.

        Raises:
            PrivateKeyMissingError: There is none, or the place that keeps it does not answer.
            ConfigurationError: It is malformed, or nothing here can read the place that keeps it.
        """
        if self._ring is None:
            with self._lock:
                if self._ring is None:
                    self._ring = KeyRing.parse(self._text or self._from_block())
        return self._ring

    @property
    def naming(self) -> Naming:
        """What makes names in this namespace; raises as `ring` does."""
        if self._naming is None:
            self._naming = self.ring.naming(self._namespace)
        return self._naming

    def covers(self, kind: CacheKind) -> bool:
        """Whether results of a kind are private."""
        return kind.private or self.everything

    # Names

    def name(self, text: str, what: str = "name") -> str:
        """Return what stands for a name where a private one would be seen, such as ``private-4f1c…``."""
        try:
            return f"{_HIDDEN}-{self.naming.digest(what, text)[:_NAME_LETTERS]}"
        except CacheError:  # without a ring nothing is kept, and this only is shown
            return _HIDDEN

    def tag(self, tag: str) -> str:
        """Return what a tag of private entries is kept as."""
        return (RECORDING if tag.startswith(RECORDING) else "") + self.name(tag, "tag")

    def tags_of(self, tag: str) -> tuple[str, ...]:
        """Return all that a tag may be kept as, in private entries and in others."""
        if self.everything:
            return (self.tag(tag),)
        return (tag, self.tag(tag)) if self.has_ring else (tag,)

    def input_digest(self, digest: str) -> str:
        """Return what a manifest has in place of the digest of an input."""
        return self.naming.digest("input", digest)

    def origin(self, kind: CacheKind, origin: Origin) -> Origin:
        """Return whom the events of a call belong to, without the name of what it is about."""
        return replace(origin, subject=self.name(origin.subject)) if self.covers(kind) and origin.subject else origin

    def conceal(self, call: Call) -> Call:
        """Return a task's call as it is looked up and stored: itself, unless its kind is private.

        Raises:
            PrivateKeyMissingError: There is no ring.
            ConfigurationError: The ring is malformed.
        """
        if not self.covers(call.kind):
            return call
        key = f"{call.kind.name}:{self.naming.digest('key', call.key)}"
        described = call.manifest
        tags = tuple(sorted(map(self.tag, call.tags)))
        return replace(call, key=key, tags=tags, private=True, manifest=lambda: self._manifest(key, described()))

    def conceal_tags(self, call: Call) -> Call:
        """Return a call under a key that its caller has made, which stays; see `conceal`."""
        if not self.covers(call.kind):
            return call
        return replace(call, tags=tuple(sorted(map(self.tag, call.tags))), private=True)

    def hidden(self, manifest: Mapping[str, Any], parameters: Iterable[str]) -> dict[str, Any]:
        """Return a manifest in which some inputs have a name instead of their digest and value."""
        names, inputs = set(parameters), manifest.get("inputs", {})
        shown = {name: self._hidden(part) if name in names else part for name, part in inputs.items()}
        return {**manifest, "inputs": shown} if names else dict(manifest)

    def _hidden(self, part: Mapping[str, Any]) -> dict[str, str]:
        name = self.input_digest(part["digest"])
        return {"digest": name, "shown": f"#{name[:12]}"}

    # Contents

    def sealed(self, key: str, payload: bytes) -> bytes:
        """Return a payload as a private entry keeps it; raises as `ring` does."""
        return seal(payload, self.ring, ("payload", self._namespace, key))

    def json_of(self, entry: Entry) -> bytes:
        """Return the JSON of an entry's payload, sealed or not.

        Raises:
            PrivateKeyMissingError: The ring does not have its key.
            CorruptEntryError: It is not what was stored under this key.
        """
        if not is_sealed(entry.payload):
            return codec.payload_of(entry)
        try:
            plain = unseal(entry.payload, self.ring, ("payload", self._namespace, entry.key))
        except CorruptEntryError as error:
            raise CorruptEntryError(f"{entry.key}: {error}") from None
        return codec.payload_of(replace(entry, payload=plain))

    def refuse(self, entry: Entry, *, private: bool) -> Lookup | None:
        """Return why an intact entry is no hit here: its key is missing, or it should be sealed and is not; or None.

        Its copies stay where they are, because the key may come back.
        """
        if not is_sealed(entry.payload):
            return Lookup(Outcome.MISS, reason=IN_CLEAR) if private or self.everything else None
        try:
            if label_of(entry.payload) in self.ring.by_label:
                return None
            why = f"{KEY_MISSING}: it was sealed with {id_of(entry.payload)!r}"
        except CacheError as error:
            why = f"{KEY_MISSING}: {error}"
        self._tell_once(why)
        return Lookup(Outcome.MISS, reason=why)

    def opened(self, key: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return a manifest with the values of its inputs, if it is sealed and the ring has its key; else as it is."""
        try:
            data = base64.b64decode(manifest["sealed"], validate=True)
            inputs = orjson.loads(unseal(data, self.ring, ("manifest", self._namespace, key)))
        except (KeyError, TypeError, binascii.Error, ValueError, CacheError):
            return dict(manifest)
        return {**{name: value for name, value in manifest.items() if name != "sealed"}, "inputs": inputs}

    def _manifest(self, key: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return a manifest of which the names of parts and what they have to be told apart by are in sight."""
        if not manifest:
            return {}
        inputs = manifest.get("inputs", {})
        sealed = seal(orjson.dumps(inputs), self.ring, ("manifest", self._namespace, key))
        return {**self.hidden(manifest, inputs), "sealed": base64.b64encode(sealed).decode()}

    # The ring

    def _from_block(self) -> str:
        if not self._block:
            raise PrivateKeyMissingError
        if not _sources:
            raise ConfigurationError(
                f"the key ring is in the Prefect Secret block {self._block!r}, which is read once cache_blocks.prefect "
                "is imported; do so, or set CACHE_BLOCKS_PRIVATE_KEYS"
            )
        if self._failure is not None and time.monotonic() < self._next_try:
            raise self._failure
        try:
            return _sources[0](self._block)
        except Exception as error:
            self._next_try = time.monotonic() + _RETRY_SECONDS
            self._failure = error if isinstance(error, CacheError) else PrivateKeyMissingError()
            self._tell_once(f"the key ring in the Prefect Secret block {self._block!r} cannot be read: {error}")
            raise self._failure from error

    def _tell_once(self, why: str) -> None:
        if why not in self._told:
            self._told.add(why)
            logger.warning("private results are misses: %s", why)


def told(error: BaseException, *, private: bool) -> str:
    """Return an error in words for logs and events; of a private call without its text, which may quote values."""
    if not private or isinstance(error, PrivateKeyMissingError | ConfigurationError):
        return str(error)
    why = getattr(error, "strerror", "") or ""
    return f"{type(error).__name__}{f': {why}' if why else ''} (the kind is private, so its text is kept back)"

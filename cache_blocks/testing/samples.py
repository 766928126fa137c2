"""An entry to write, and keys that must be refused."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import orjson

from cache_blocks import codec
from cache_blocks.entry import Entry, scopes_of

KEY: Final = "transcript:1f2e"
HOSTILE_KEYS: Final = (
    "",
    "transcript",
    "transcript:",
    ":digest",
    "TRANSCRIPT:1f2e",
    "transcript:../../etc/passwd",
    "transcript:a..b",
    "transcript:.hidden",
    "transcript:a/b",
    "transcript:a\\b",
    "transcript:a:b",
    "transcript:*",
    "transcript:a b",
    "transcript:a\n",
    "transcript:a\x00",
    "transcript:a\r\nFLUSHALL\r\n",
    "transcript:ä",
    "transcript:a';DROP TABLE cache_blocks_entry;--",
    "transcript:" + "a" * 161,
    "a" * 49 + ":1f2e",
)


def entry_for(
    key: str = KEY,
    value: Any = "a transcript",
    *,
    namespace: str = "default",
    fence: int = 1,
    tags: Sequence[str] = (),
    expires_in: float = 3600.0,
    now: float | None = None,
    **changes: Any,
) -> Entry:
    """Return an entry that is valid where nothing has been invalidated.

    Args:
        key: ``kind:digest``.
        value: JSON-able payload.
        namespace: Environment.
        fence: Fencing number.
        tags: Labels, sorted.
        expires_in: Seconds of lifetime.
        now: Time of creation in seconds since the epoch; the present when not given.
        changes: Further fields of `Entry`.
    """
    created = float(int(time.time() if now is None else now))
    json = orjson.dumps(value)
    entry = Entry(
        key=key,
        namespace=namespace,
        created_at=created,
        expires_at=created + expires_in,
        compute_seconds=2.5,
        tags=tuple(tags),
        generations=(0,) * len(scopes_of(key, tags)),
        fence=fence,
        placement=frozenset({"redis", "sql", "object_store"}),
        size=len(json),
        payload=codec.compress(json),
        usage={"audio_seconds": 12.5},
        manifest={"task": "transcribe", "inputs": {"audio": {"digest": "ab", "shown": "a.mp3"}}},
    )
    return replace(entry, **changes)

"""Lesson 1: a result is computed once, and afterwards looked up."""

from __future__ import annotations

from typing import Any

from cache_blocks import NO_VALUE, TRANSCRIPT, Outcome, TieredCache
from cache_blocks.keys import make_key


def test_what_was_computed_is_not_computed_again(cache: TieredCache) -> None:
    computed: list[str] = []

    def transcribe() -> dict[str, Any]:
        computed.append("once")
        return {"text": "It was a bright cold day in April.", "language": "en"}

    key = make_key(TRANSCRIPT, "recording", "tiny.en")
    first = cache.get_or_compute(key, transcribe, kind=TRANSCRIPT)
    second = cache.get_or_compute(key, transcribe, kind=TRANSCRIPT)
    assert first == second == {"text": "It was a bright cold day in April.", "language": "en"}
    assert computed == ["once"]


def test_another_process_finds_it_too(cache: TieredCache) -> None:
    cache.put("transcript:1", "text", kind=TRANSCRIPT)
    another = TieredCache()  # shares the database and the object store, not the memory
    assert another.get("transcript:1") == "text"
    another.close()


def test_a_cached_none_is_not_a_miss(cache: TieredCache) -> None:
    assert cache.get("transcript:1") is NO_VALUE
    cache.put("transcript:1", None, kind=TRANSCRIPT)
    assert cache.get("transcript:1") is None


def test_many_keys_are_looked_up_at_once(cache: TieredCache) -> None:
    for number in range(3):
        cache.put(f"transcript:{number}", number, kind=TRANSCRIPT)
    found = cache.get_many([f"transcript:{number}" for number in range(4)])
    assert found == {"transcript:0": 0, "transcript:1": 1, "transcript:2": 2, "transcript:3": NO_VALUE}


def test_hit_and_miss_look_alike_and_nobody_can_change_what_another_gets(cache: TieredCache) -> None:
    original = ["a"]
    on_a_miss = cache.get_or_compute("transcript:1", lambda: original, kind=TRANSCRIPT)
    on_a_miss.append("changed by its caller")
    original.append("changed by its maker")
    on_a_hit = cache.get("transcript:1")
    assert on_a_hit == ["a"]
    on_a_hit.append("changed again")
    assert cache.get("transcript:1") == ["a"]


def test_one_can_look_away(cache: TieredCache) -> None:
    cache.put("transcript:1", "kept", kind=TRANSCRIPT)
    off = TieredCache(cache.settings.model_copy(update={"mode": "off"}))
    assert off.lookup("transcript:1").outcome is Outcome.HIT, "a direct question is answered"
    assert off.get("transcript:1") is NO_VALUE
    assert off.get_or_compute("transcript:1", lambda: "computed", kind=TRANSCRIPT) == "computed"
    assert cache.get("transcript:1") == "kept"
    off.close()


def test_read_only_takes_hits_and_leaves_everything_as_it_is(cache: TieredCache) -> None:
    cache.put("transcript:1", "kept", kind=TRANSCRIPT)
    reader = TieredCache(cache.settings.model_copy(update={"mode": "read-only"}))
    assert reader.get("transcript:1") == "kept"
    assert reader.get_or_compute("transcript:2", lambda: "computed", kind=TRANSCRIPT) == "computed"
    reader.put("transcript:3", "x", kind=TRANSCRIPT)
    assert cache.get_many(["transcript:2", "transcript:3"]) == dict.fromkeys(["transcript:2", "transcript:3"], NO_VALUE)
    reader.close()


def test_off_touches_nothing(cache: TieredCache) -> None:
    off = TieredCache(cache.settings.model_copy(update={"mode": "off"}))
    assert off.get_or_compute("transcript:1", lambda: "computed", kind=TRANSCRIPT) == "computed"
    off.close()
    assert not cache.settings.home.exists()

"""A private kind: what is kept opens for this very key, kind and namespace; a private key that is missing is a miss."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

import pytest
from prefect import flow
from prefect.blocks.system import Secret
from prefect.futures import wait
from pydantic import SecretStr

from cache_blocks import NO_VALUE, CachedFile, CacheKind, CacheSettings, TieredCache, cached_map, cached_task
from cache_blocks import events as actions
from cache_blocks.causes import cause_of
from cache_blocks.errors import CacheError, ConfigurationError, PrivateKeyMissingError
from cache_blocks.maintenance import count, forget, ls, show, verify
from cache_blocks.plan import IN_CLEAR, KEY_MISSING
from cache_blocks.private.ring import new_key, new_ring
from cache_blocks.private.sealing import is_sealed

if TYPE_CHECKING:
    from pathlib import Path

    from cache_blocks.entry import Entry

NOTES = CacheKind("notes", ttl=timedelta(hours=1), replica=True, private=True)
LETTERS = CacheKind("letters", ttl=timedelta(hours=1), replica=True, private=True)
OPEN = CacheKind("notes", ttl=timedelta(hours=1), replica=True)
KEY = "notes:monday"
TEXT = "The patient prefers tea"


@pytest.fixture
def cache(private_settings: CacheSettings) -> TieredCache:
    return TieredCache(private_settings)


def entry_of(cache: TieredCache, key: str) -> Entry:
    entry = cache.lookup(key).entry
    assert entry is not None
    return entry


def again(settings: CacheSettings, **changed: object) -> TieredCache:
    """A process that comes later, with other settings."""
    return TieredCache(settings.model_copy(update=changed))


def with_ring(settings: CacheSettings, ring: str) -> TieredCache:
    return again(settings, private_keys=SecretStr(ring))


def plant(cache: TieredCache, entry: Entry) -> None:
    """Write an entry into every tier as somebody would who may write there."""
    for tier in cache.parts.chain.tiers:
        tier.write([replace(entry, fence=entry.fence + 1)])


def test_a_value_comes_back_and_is_sealed_in_every_tier(cache: TieredCache) -> None:
    cache.put(KEY, {"text": TEXT}, kind=NOTES)
    assert cache.get(KEY) == {"text": TEXT}
    for tier in cache.parts.chain.tiers:
        if answer := tier.read([KEY]).entries:
            assert is_sealed(answer[KEY].payload)
            assert TEXT.encode() not in answer[KEY].payload


@pytest.mark.parametrize("target", ["notes:tuesday", "letters:monday"])
@pytest.mark.promise(
    "A private result that was moved to another key, kind or namespace is a miss, never a value.",
    tries="payloads are planted under other keys, kinds and namespaces in every tier",
)
def test_a_payload_that_was_moved_to_another_key_or_kind_is_a_miss(cache: TieredCache, target: str) -> None:
    kind = NOTES if target.startswith("notes") else LETTERS
    cache.put(KEY, TEXT, kind=NOTES)
    cache.put(target, "something else", kind=kind)
    plant(cache, replace(entry_of(cache, target), payload=entry_of(cache, KEY).payload, size=entry_of(cache, KEY).size))
    (found,) = cache.find([cache.call(target, kind=kind).request]).values()
    assert found.value is NO_VALUE
    assert found.lookup.outcome == "corrupt"
    assert TEXT not in found.lookup.reason


@pytest.mark.promise(
    "A private result that was moved to another key, kind or namespace is a miss, never a value.",
    tries="payloads are planted under other keys, kinds and namespaces in every tier",
)
def test_a_payload_that_was_moved_to_another_namespace_is_a_miss(
    cache: TieredCache, private_settings: CacheSettings
) -> None:
    cache.put(KEY, TEXT, kind=NOTES)
    other = again(private_settings, namespace="other")
    other.put(KEY, "theirs", kind=NOTES)
    plant(other, replace(entry_of(other, KEY), payload=entry_of(cache, KEY).payload, size=entry_of(cache, KEY).size))
    assert other.get(KEY) is NO_VALUE


def test_what_was_stored_in_clear_does_not_count_for_a_private_kind(cache: TieredCache) -> None:
    cache.put(KEY, "planted", kind=OPEN)
    (found,) = cache.find([cache.call(KEY, kind=NOTES).request]).values()
    assert (found.value, found.lookup.reason) == (NO_VALUE, IN_CLEAR)
    assert cache.get_or_compute(KEY, lambda: "computed", kind=NOTES) == "computed"


def test_when_everything_is_private_nothing_in_clear_counts(private_settings: CacheSettings) -> None:
    TieredCache(private_settings).put(KEY, "in clear", kind=OPEN)
    cache = again(private_settings, private=True)
    assert cache.lookup(KEY).reason == IN_CLEAR
    cache.put(KEY, TEXT, kind=OPEN)
    assert is_sealed(entry_of(cache, KEY).payload)
    assert cache.get(KEY) == TEXT


# Keys that are missing


@pytest.mark.parametrize("theirs", ["", new_ring("old"), new_ring("other")], ids=["none", "wrong", "another"])
@pytest.mark.promise(
    "A missing or wrong key makes a miss with that reason, and removes nothing: the key may come back.",
    tries="no ring, a ring with another key, and one with another key of the same name",
)
def test_a_missing_key_is_a_miss_and_the_copies_stay(
    cache: TieredCache, private_settings: CacheSettings, theirs: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, TEXT, kind=NOTES)
    poor = with_ring(private_settings, theirs)
    with caplog.at_level(logging.WARNING, "cache_blocks"):
        for _ in range(3):
            assert poor.get(KEY) is NO_VALUE
    poor.parts.events.flush()
    found = poor.lookup(KEY)
    assert (found.outcome, cause_of(found.outcome, found.reason)) == ("miss", KEY_MISSING)
    assert [event.reason for event in poor.parts.events.of_key(KEY)] == [found.reason] * 3, "each is counted"
    assert len([line for line in caplog.messages if KEY_MISSING in line]) == 1, "it is logged once"
    assert poor.metrics.misses == 3
    assert verify(poor).sound
    assert TieredCache(private_settings).get(KEY) == TEXT


def test_without_a_ring_a_private_result_is_computed_and_not_kept(
    private_settings: CacheSettings, caplog: pytest.LogCaptureFixture
) -> None:
    cache = with_ring(private_settings, "")
    assert cache.get_or_compute(KEY, lambda: TEXT, kind=NOTES) == TEXT
    assert cache.lookup(KEY).entry is None
    assert cache.metrics.unstored == 1
    assert TEXT not in caplog.text
    with pytest.raises(PrivateKeyMissingError, match="cache-blocks keys new"):
        cache.put(KEY, TEXT, kind=NOTES)


def test_a_task_without_a_ring_runs_and_says_why_it_is_not_cached(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prefect_server: str
) -> None:
    del prefect_server
    monkeypatch.setenv("CACHE_BLOCKS_PRIVATE", "true")
    assert diagnose("flu", note=TEXT) == f"flu: {TEXT}"
    assert "there is no key ring" in caplog.text
    assert TEXT not in caplog.text


def test_the_key_comes_back(cache: TieredCache, private_settings: CacheSettings, ring: str) -> None:
    cache.put(KEY, TEXT, kind=NOTES)
    names, old = ring.split(",")
    replaced = with_ring(private_settings, f"{names},{new_key('new')}")
    assert replaced.get(KEY) is NO_VALUE
    assert with_ring(private_settings, f"{names},{new_key('new')},{old}").get(KEY) == TEXT


# Files


def test_a_file_is_sealed_under_a_name_that_says_nothing(cache: TieredCache, tmp_path: Path) -> None:
    sound = tmp_path / "jane-roe.wav"
    sound.write_bytes(b"unmistakable" * 300_000)
    cache.put(KEY, {"sound": CachedFile.from_path(sound)}, kind=NOTES)
    (name,) = entry_of(cache, KEY).blobs
    file: CachedFile = cache.get(KEY)["sound"]
    assert file.digest != name
    objects = cache.settings.home / "objects"
    blobs = [path for path in objects.rglob("*") if path.is_file() and "blobs" in path.parts]
    assert [path.name for path in blobs] == [name]
    assert b"unmistakable" not in blobs[0].read_bytes()
    assert file.path.read_bytes() == sound.read_bytes()
    assert file.path.suffix == ".wav"
    assert "jane" not in str(file.path) + repr(file)
    assert verify(cache).sound


def test_equal_files_are_stored_once_and_again_after_a_restart(
    cache: TieredCache, private_settings: CacheSettings, tmp_path: Path
) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"the same")
    for number, one in enumerate((cache, TieredCache(private_settings))):
        one.put(f"notes:{number}", CachedFile.from_path(sound), kind=NOTES)
    assert len({name for number in range(2) for name in entry_of(cache, f"notes:{number}").blobs}) == 1


def test_a_damaged_file_is_found_and_removed_but_not_one_whose_key_is_missing(
    cache: TieredCache, private_settings: CacheSettings, tmp_path: Path
) -> None:
    sound = tmp_path / "a.wav"
    sound.write_bytes(b"sound" * 100)
    cache.put(KEY, CachedFile.from_path(sound), kind=NOTES)
    (name,) = entry_of(cache, KEY).blobs
    blob = next(cache.settings.home.rglob(f"blobs/*/{name}"))
    assert verify(with_ring(private_settings, new_ring("other"))).sound
    *rest, last = blob.read_bytes()
    blob.write_bytes(bytes([*rest, last ^ 1]))  # another byte, whatever the last one of sealed bytes happens to be
    assert TieredCache(private_settings).lookup(KEY).outcome == "corrupt"
    assert not blob.exists()


# Names


def copies_on_this_machine(cache: TieredCache) -> set[bytes]:
    copies = cache.settings.local_files.glob("[0-9a-f][0-9a-f]/*/*")
    return {path.read_bytes() for path in copies}


@cached_task(kind=NOTES, cache_version="1", cache_ignore=("name",), cache_tags=(lambda given: f"of:{given['name']}",))
def diagnose(what: str, note: str, name: str = "Jane Roe") -> str:  # noqa: ARG001 - for people
    return f"{what}: {note}"


@pytest.fixture
def of_environment(monkeypatch: pytest.MonkeyPatch, ring: str, prefect_server: str) -> TieredCache:
    """The cache that tasks of this process use; a task run needs a server."""
    del prefect_server
    monkeypatch.setenv("CACHE_BLOCKS_PRIVATE_KEYS", ring)
    return TieredCache.from_settings()


def test_tags_are_names_that_say_nothing_and_invalidate_all_the_same(of_environment: TieredCache) -> None:
    diagnose("flu", note=TEXT)
    (entry,) = ls(of_environment)
    assert "Jane" not in str(entry)
    assert [one.key for one in ls(of_environment, tag="of:Jane Roe")] == [entry.key]
    assert count(of_environment, tag="of:Jane Roe") == 1
    assert of_environment.invalidate(tag="of:Jane Roe").entries == 1
    assert of_environment.lookup(entry.key).outcome == "invalidated"


def test_who_has_the_ring_sees_what_a_key_was_made_of_and_nobody_else(
    of_environment: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    diagnose("flu", note=TEXT)
    (entry,) = ls(of_environment)
    details = show(of_environment, entry.key)
    assert details is not None
    assert details.manifest["inputs"]["note"]["shown"] == TEXT
    monkeypatch.delenv("CACHE_BLOCKS_PRIVATE_KEYS")
    details = show(TieredCache.from_settings(), entry.key)
    assert details is not None
    assert TEXT not in str(details)


def test_a_miss_says_which_parts_have_changed_and_not_how(of_environment: TieredCache) -> None:
    diagnose("flu", note=TEXT)
    diagnose("flu", note="something else")
    reasons = [event.reason for event in of_environment.parts.events.since(0) if event.action == actions.LOOKUP]
    assert reasons[-1].startswith("changed: note")
    assert TEXT not in str(reasons)
    assert "something else" not in str(reasons)


def test_a_result_that_cannot_be_stored_is_not_quoted(
    of_environment: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    assert isinstance(of_environment.get_or_compute(KEY, lambda: {TEXT: object()}, kind=NOTES), dict)
    reasons = [event.reason for event in of_environment.parts.events.since(0) if event.action == actions.UNSTORED]
    assert len(reasons) == 1
    assert TEXT not in caplog.text + reasons[0]


def test_a_recording_is_forgotten_by_its_digest(of_environment: TieredCache, tmp_path: Path) -> None:
    sound, others = tmp_path / "a.wav", tmp_path / "b.wav"
    sound.write_bytes(b"a")
    others.write_bytes(b"b")
    for number, path in enumerate((sound, others)):
        file = CachedFile.from_path(path)
        of_environment.put(f"notes:{number}", file, kind=NOTES, tags=[f"recording:{file.digest}"])
        assert of_environment.get(f"notes:{number}").path.read_bytes() == path.read_bytes()
    assert copies_on_this_machine(of_environment) == {b"a", b"b"}
    done = forget(of_environment, sound)
    assert done.complete
    assert copies_on_this_machine(of_environment) == {b"b"}
    assert done.entries == ["notes:0"]
    assert of_environment.get("notes:1") is not NO_VALUE


def test_contents_that_a_private_task_has_returned_are_on_this_machine_under_the_name_of_their_blob(
    private_settings: CacheSettings,
) -> None:
    kind = CacheKind(
        "scans", ttl=timedelta(hours=1), large_binary=True, tiers=frozenset({"sql", "object_store"}), private=True
    )
    cache = TieredCache(private_settings)
    cache.put("scans:1", b"a scan", kind=kind, annotation=bytes)
    (name,) = entry_of(cache, "scans:1").blobs
    assert cache.get("scans:1", annotation=bytes) == b"a scan"
    assert copies_on_this_machine(cache) == {b"a scan"}
    assert {copy.parent.name for copy in cache.settings.local_files.glob("[0-9a-f][0-9a-f]/*/*")} == {name}


def test_a_private_argument_of_an_open_kind_is_a_name_that_cannot_be_guessed(
    of_environment: TieredCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    @cached_task(kind=CacheKind("visits", ttl=timedelta(hours=1)), cache_version="1", cache_private=("pin",))
    def visit(pin: str, day: str) -> str:
        return day + pin[:0]

    visit("1234", "monday")
    monkeypatch.delenv("CACHE_BLOCKS_PRIVATE_KEYS")
    visit("1234", "tuesday")
    kept = [show(TieredCache.from_settings(), entry.key) for entry in ls(of_environment)]
    without, having = (one.manifest["inputs"] for one in kept if one is not None)
    assert having["day"]["shown"] == "monday"
    assert having["pin"]["digest"] != without["pin"]["digest"]
    assert without["pin"]["shown"].removeprefix("str ") != having["pin"]["shown"]


# Through Prefect


def test_a_batch_of_private_results_is_hit(of_environment: TieredCache) -> None:
    items = ["flu", "cold", "cough"]

    @flow
    def batch() -> list[str]:
        futures = cached_map(diagnose, items, TEXT)
        wait(futures)
        return [future.result() for future in futures]

    expected = [f"{item}: {TEXT}" for item in items]
    assert batch() == batch() == expected
    outcomes = [event.outcome for event in of_environment.parts.events.since(0) if event.action == actions.LOOKUP]
    assert outcomes == ["miss"] * 3 + ["hit"] * 3


def test_the_ring_may_be_in_a_secret_block(
    monkeypatch: pytest.MonkeyPatch, ring: str, of_environment: TieredCache
) -> None:
    of_environment.put(KEY, TEXT, kind=NOTES)
    block: Secret[str] = Secret(value=SecretStr(ring))  # as Prefect's page makes it; `Secret[str]` is a type of its own
    block.save("private-ring", overwrite=True)
    monkeypatch.delenv("CACHE_BLOCKS_PRIVATE_KEYS")
    monkeypatch.setenv("CACHE_BLOCKS_PRIVATE_KEYS_BLOCK", "private-ring")
    assert TieredCache.from_settings().get(KEY) == TEXT
    monkeypatch.setenv("CACHE_BLOCKS_PRIVATE_KEYS_BLOCK", "no-such-ring")
    with pytest.raises(ConfigurationError, match="no Prefect Secret block"):
        _ = TieredCache.from_settings().privacy.ring
    assert TieredCache.from_settings().get(KEY) is NO_VALUE


def test_settings_show_no_key(ring: str, private_settings: CacheSettings) -> None:
    from cache_blocks.cli.settings_shown import settings_shown

    secrets = [member.partition(":")[2] for member in ring.split(",")]
    shown = str(settings_shown(private_settings)) + repr(private_settings)
    assert not [secret for secret in secrets if secret in shown]


def test_errors_say_the_way_out() -> None:
    assert issubclass(PrivateKeyMissingError, CacheError)
    assert "keys new" in str(PrivateKeyMissingError())

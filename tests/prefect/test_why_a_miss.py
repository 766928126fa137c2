"""Every miss has a reason: one thing is changed at a time, and the reason names it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from prefect import Task
from pydantic import BaseModel, SecretStr

from cache_blocks import TRANSCRIPT, CacheSettings, Outcome, TieredCache, cached_task
from cache_blocks.errors import TierUnavailableError
from cache_blocks.events import LOOKUP
from cache_blocks.explaining import Explainer
from cache_blocks.schema import EntryRow, table
from tests.prefect.observed import lines_of, recorded


class Engine(BaseModel):
    model: str = "tiny.en"
    beam: int = 5
    api_key: SecretStr = SecretStr("sk-123")


def transcribe_with(version: str | None = "3", fn: Callable[..., Any] | None = None, **options: Any) -> Task[..., str]:
    def transcribe(audio: Path, engine: Engine, language: str = "en", name: str = "") -> str:
        del engine, language, name
        return audio.read_bytes().decode()

    used = fn or transcribe
    return cached_task(used, kind=TRANSCRIPT, cache_version=version, cache_ignore=("name",), **options)


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    path = tmp_path / "a.wav"
    path.write_bytes(b"some sound")
    return path


def reason_of_last(cache: TieredCache) -> tuple[str, str]:
    event = recorded(cache, LOOKUP)[-1]
    return event.outcome, event.reason


def test_never_seen(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    assert reason_of_last(cache) == ("miss", "never seen")


def test_a_parameter_that_changed_is_named_with_both_values(
    cache: TieredCache, audio: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")

    transcribe_with()(audio, Engine(), "de", name="a.wav")

    assert reason_of_last(cache) == ("miss", "changed: language: en -> de")
    assert lines_of(caplog, "miss transcript a.wav: changed: language: en -> de")


def test_a_field_of_a_model_is_named(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    transcribe_with()(audio, Engine(model="base", beam=1), name="a.wav")
    assert reason_of_last(cache)[1] == "changed: engine.beam: 5 -> 1; engine.model: tiny.en -> base"


def test_content_that_changed_under_one_name(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    audio.write_bytes(b"another sound")
    transcribe_with()(audio, Engine(), name="a.wav")
    assert reason_of_last(cache)[1] == "changed: audio: content changed"


def test_the_same_sound_under_another_name_is_the_same_work(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    transcribe_with()(audio, Engine(), "de", name="renamed.wav")
    assert reason_of_last(cache)[1] == "changed: language: en -> de"


def test_a_version_that_was_raised(cache: TieredCache, audio: Path) -> None:
    transcribe_with("3")(audio, Engine(), name="a.wav")
    transcribe_with("4")(audio, Engine(), name="a.wav")
    assert reason_of_last(cache)[1] == "changed: cache_version: 3 -> 4"


def test_a_source_that_changed_is_named_with_its_file(cache: TieredCache, audio: Path) -> None:
    def one() -> Callable[..., Any]:
        def transcribe(audio: Path) -> str:
            return audio.name

        return transcribe

    def other() -> Callable[..., Any]:
        def transcribe(audio: Path) -> str:
            return audio.name.upper()

        return transcribe

    for fn in (one(), other()):
        cached_task(fn, kind=TRANSCRIPT)(audio)
    assert reason_of_last(cache)[1] == "changed: source: prefect/test_why_a_miss.py transcribe changed"


def test_the_nearest_of_several_earlier_ones_is_compared(cache: TieredCache, audio: Path) -> None:
    task = transcribe_with()
    task(audio, Engine(model="large", beam=9), "fr", name="a.wav")
    task(audio, Engine(model="base"), "en", name="a.wav")
    task(audio, Engine(model="large", beam=8), "de", name="a.wav")
    task(audio, Engine(), "en", name="a.wav")
    assert reason_of_last(cache)[1] == "changed: engine.model: base -> tiny.en"


def test_an_expired_entry_says_when(monkeypatch: pytest.MonkeyPatch, audio: Path, cache: TieredCache) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    later = TieredCache(cache.settings, clock=lambda: time.time() + 31 * 86400)
    monkeypatch.setattr(TieredCache, "from_settings", lambda: later)
    transcribe_with()(audio, Engine(), name="a.wav")
    later.close()
    outcome, reason = reason_of_last(cache)
    assert (outcome, reason[:12]) == ("expired", "expired 1.0 ")


def test_an_invalidated_entry_says_by_what_and_when(cache: TieredCache, audio: Path) -> None:
    task = transcribe_with(cache_tags=("model:tiny",))
    for scope in ({"tag": "model:tiny"}, {"kind": "transcript"}, {}):
        task(audio, Engine(), name="a.wav")
        cache.invalidate(**scope)
        task(audio, Engine(), name="a.wav")
        outcome, reason = reason_of_last(cache)
        named = next(iter(f"{name}:{value}" for name, value in scope.items()), "all")
        assert outcome == "invalidated"
        assert reason.startswith(f"invalidated by {named} at {time.strftime('%Y-%m-%d', time.gmtime())}")


def test_an_invalidated_key_says_so(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    cache.invalidate(key=recorded(cache, LOOKUP)[-1].key)
    transcribe_with()(audio, Engine(), name="a.wav")
    assert reason_of_last(cache)[1].startswith("invalidated by key at ")


def test_a_corrupt_copy_names_its_tier(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    cache.parts.chain.tier("memory").delete([recorded(cache, LOOKUP)[-1].key])
    entries = table(EntryRow)
    with cache.parts.database.begin() as connection:
        envelope = bytes(connection.execute(sa.select(entries.c.envelope)).scalar_one())
        connection.execute(sa.update(entries).values(envelope=envelope[:-1] + bytes([envelope[-1] ^ 1])))
    folder = cache.parts.store.local_root
    assert folder is not None
    for path in (folder / "default" / "entries").rglob("*"):
        if path.is_file():
            path.unlink()

    transcribe_with()(audio, Engine(), name="a.wav")

    event = recorded(cache, LOOKUP)[-1]
    assert (event.outcome, event.tier) == ("corrupt", "sql")


def test_a_tier_that_is_down_is_named(monkeypatch: pytest.MonkeyPatch, cache: TieredCache, audio: Path) -> None:
    def down(*arguments: Any) -> Any:
        raise TierUnavailableError("sql", f"no route to host, {len(arguments)}")

    monkeypatch.setattr(cache.parts.chain.tier("sql"), "_fetch", down)
    transcribe_with()(audio, Engine(), name="a.wav")
    outcome, reason = reason_of_last(cache)
    assert outcome == "tier_down"
    assert reason.startswith("sql: no route to host")


def test_a_refresh_is_a_reason(cache: TieredCache, audio: Path) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    transcribe_with(refresh_cache=True)(audio, Engine(), name="a.wav")
    assert reason_of_last(cache) == (Outcome.BYPASSED, "Prefect was told to refresh the cache")


def test_a_private_argument_is_compared_but_never_shown(cache: TieredCache, audio: Path) -> None:
    def enhance(audio: Path, prompt: str) -> str:
        return f"{audio.name} {prompt}"

    task = cached_task(enhance, kind=TRANSCRIPT, cache_version="1", cache_private=("prompt",))
    task(audio, "Anna has the flu")
    task(audio, "Otto has the flu")
    reason = reason_of_last(cache)[1]
    assert reason.startswith("changed: prompt: str #")
    entries = table(EntryRow)
    with cache.parts.database.read() as connection:
        stored = str(list(connection.execute(sa.select(entries.c.manifest)).scalars()))
    assert "flu" not in reason + stored


def test_a_lookup_is_explained_even_when_sql_goes_down_in_between(
    monkeypatch: pytest.MonkeyPatch, cache: TieredCache, audio: Path
) -> None:
    def down(*arguments: Any) -> Any:
        raise TierUnavailableError("sql", f"gone, {len(arguments)}")

    monkeypatch.setattr(Explainer, "nearest", down)
    assert transcribe_with()(audio, Engine(), name="a.wav") == "some sound"
    assert reason_of_last(cache) == ("miss", "never seen")


def test_namespaces_explain_nothing_to_each_other(cache_home: Path, audio: Path, cache: TieredCache) -> None:
    transcribe_with()(audio, Engine(), name="a.wav")
    other = TieredCache(CacheSettings(home=cache_home, namespace="other"))
    nearest = other.parts.explainer.nearest("transcript:x", {"task": "transcribe"}, "a.wav")
    other.close()
    assert nearest is None
    assert cache.parts.explainer.nearest("transcript:x", {"task": "transcribe"}, "a.wav") is not None

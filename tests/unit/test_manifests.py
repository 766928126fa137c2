"""How arguments read in a manifest, and what is said to have changed between two."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr

from cache_blocks import TRANSCRIPT, CachedFile
from cache_blocks.keys import TaskIdentity, build_key
from cache_blocks.manifests import SECRET, changes_between, named_files, shown


class Engine(BaseModel):
    model: str = "tiny.en"
    beam: int = 5
    api_key: SecretStr = SecretStr("sk-123")


@dataclasses.dataclass
class Options:
    engine: Engine
    words: tuple[str, ...] = ()


def manifest(version: str | None = None, source: str = "def f(): return 1", **arguments: Any) -> dict[str, Any]:
    return build_key(TRANSCRIPT, TaskIdentity("transcribe", "transcribe", version, source), arguments).manifest()


def told(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [str(change) for change in changes_between(old, new)]


@pytest.mark.parametrize(
    "value, reading",
    [
        (None, "None"),
        (3, "3"),
        ("en", "en"),
        (Path("/somewhere/a.wav"), "a.wav"),
        (SecretStr("sk-123"), SECRET),
        (Engine(), {"model": "tiny.en", "beam": "5", "api_key": SECRET}),
        (Options(Engine()), {"engine.model": "tiny.en", "engine.beam": "5", "engine.api_key": SECRET}),
        ({"a": {"b": 1}, "password": "hunter2"}, {"a.b": "1", "password": SECRET}),
    ],
)
def test_arguments_read_short_and_without_secrets(value: Any, reading: Any) -> None:
    found = shown(value)
    if isinstance(value, Options):
        assert isinstance(found, dict)
        assert found.pop("words").startswith("tuple #")
    assert found == reading


def test_the_files_among_arguments_are_named() -> None:
    assert named_files([1, Path("/x/a.mp3"), CachedFile("ab" * 32, 3, "b.wav", "audio/wav")]) == ["a.mp3", "b.wav"]


def test_large_values_are_a_digest_that_tells_them_apart() -> None:
    one, other = shown("a" * 1000), shown("b" * 1000)
    assert isinstance(one, str)
    assert one.startswith("str #")
    assert one != other
    assert "aaa" not in one


def test_a_private_argument_is_never_in_clear() -> None:
    assert "Anna" not in str(shown({"name": "Anna"}, private=True))
    assert shown("Anna", private=True) != shown("Otto", private=True)


def test_a_changed_parameter_is_named_with_both_values() -> None:
    assert told(manifest(model="tiny.en"), manifest(model="base")) == ["model: tiny.en -> base"]
    assert told(manifest(engine=Engine()), manifest(engine=Engine(model="base"))) == ["engine.model: tiny.en -> base"]


def test_changed_content_is_named_without_its_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"one")
    before = manifest(audio=tmp_path / "a.wav")
    (tmp_path / "a.wav").write_bytes(b"another")
    assert told(before, manifest(audio=tmp_path / "a.wav")) == ["audio: content changed"]


def test_a_renamed_file_with_other_bytes_is_named_by_both_names() -> None:
    one, other = CachedFile("a" * 64, 1, "a.wav", "audio/wav"), CachedFile("b" * 64, 1, "b.wav", "audio/wav")
    assert told(manifest(audio=one), manifest(audio=other)) == ["audio: a.wav -> b.wav"]


def test_a_changed_secret_is_named_without_either() -> None:
    changed = told(manifest(engine=Engine()), manifest(engine=Engine(api_key=SecretStr("sk-456"))))
    assert changed == ["engine: content changed"]


def test_versions_and_sources_are_named() -> None:
    assert told(manifest("3"), manifest("4")) == ["cache_version: 3 -> 4"]
    assert told(manifest(), manifest("4")) == ["cache_version: (absent) -> 4"]
    assert told(manifest(), manifest(source="def f(): return 2")) == ["source: transcribe changed"]
    with_file = manifest(source="def f(): return 2") | {"file": "tasks/transcription.py"}
    assert told(manifest(), with_file) == ["source: tasks/transcription.py transcribe changed"]


def test_added_and_removed_arguments_are_named() -> None:
    assert told(manifest(), manifest(language="en")) == ["language: (absent) -> en"]
    assert told(manifest(language="en"), manifest()) == ["language: en -> (absent)"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=200),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["audio", "engine", "language"]), VALUES, max_size=3), VALUES)
def test_equal_calls_have_no_changes_and_different_ones_have_some(arguments: dict[str, Any], other: Any) -> None:
    before = manifest(**arguments)
    assert changes_between(before, before) == ()
    after = manifest(**{**arguments, "engine": other})
    differ = before["inputs"].get("engine", {}).get("digest") != after["inputs"]["engine"]["digest"]
    assert bool(changes_between(before, after)) is differ


@given(VALUES, VALUES)
def test_whatever_a_tier_says_a_manifest_is_nothing_breaks(old: Any, new: Any) -> None:
    hostile: dict[str, Any] = {"inputs": {"audio": old, "engine": {"digest": old, "shown": new}}, "version": old}
    assert changes_between(hostile, hostile) == ()
    changes_between(hostile, {"inputs": new, "source": old})

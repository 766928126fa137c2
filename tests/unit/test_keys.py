"""A key is everything that decides a result and nothing else, the same in every process and Python version."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
import json
import os
import subprocess
import sys
from collections import OrderedDict
from decimal import Decimal
from fractions import Fraction
from itertools import combinations
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import UUID

import fsspec
import numpy as np
import orjson
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache_blocks.canonical import digest_value
from cache_blocks.entry import MAX_TAG_LENGTH, MAX_TAGS, check_tags
from cache_blocks.errors import InvalidKeyError, UnhashableArgumentError
from cache_blocks.files import CachedFile
from cache_blocks.fingerprint import digest_path
from cache_blocks.keys import (
    BuiltKey,
    TaskIdentity,
    build_key,
    make_key,
    normalise_source,
)
from cache_blocks.kinds import SEARCH_RESULTS, TRANSCRIPT
from tests.unit.test_codec import json_values

TASK = TaskIdentity("transcribe", "transcribe", source="def transcribe(audio):\n    return audio\n")
VECTORS: dict[str, Any] = json.loads((Path(__file__).parent / "key_vectors.json").read_text())


class Model(pydantic.BaseModel):
    name: str
    options: dict[str, Any] = {}


class OtherModel(pydantic.BaseModel):
    name: str
    options: dict[str, Any] = {}


@dataclasses.dataclass
class Options:
    beam: int
    names: tuple[str, ...] = ()


class Style(enum.Enum):
    PLAIN = "plain"


class Level(enum.IntEnum):
    ONE = 1


def key_of(*, task: TaskIdentity = TASK, ignore: tuple[str, ...] = (), **arguments: Any) -> BuiltKey:
    return build_key(TRANSCRIPT, task, arguments, ignore=ignore)


DIFFERENT: list[Any] = [
    1, 1.0, True, "1", b"1", None, 0, 0.0, -0.0, False, "", b"", [], (), {}, set[int](), "None", Decimal(1),
    Fraction(1), Style.PLAIN, "plain", Level.ONE, 1j, UUID(int=1), dt.date(2024, 1, 1), dt.time(1), dt.timedelta(1),
    dt.datetime(2024, 1, 1), dt.datetime(2024, 1, 1, tzinfo=dt.UTC),  # noqa: DTZ001 - naive and aware differ
    [1], (1,), {1}, [[1]], [1, 1], {"a": 1}, {"a": 1.0}, {1: "a"}, {"a": {"b": 1}}, {"a": "b"}, ["a", "b"], ["ab"],
    Model(name="a"), OtherModel(name="a"), {"name": "a", "options": {}}, Options(1), pydantic.SecretStr("1"),
    np.array([1, 2]), np.array([1.0, 2.0]), np.array([[1, 2]]), np.int64(1), 2**70,
]  # fmt: skip


def test_values_that_differ_have_keys_that_differ() -> None:
    for left, right in combinations(DIFFERENT, 2):
        assert digest_value(left, "x") != digest_value(right, "x"), f"{left!r} and {right!r}"


SAME: list[tuple[Any, Any]] = [
    ({"a": 1, "b": [2]}, {"b": [2], "a": 1}),
    ({"a": 1}, OrderedDict(a=1)),
    ({"x", "y", "z"}, {"z", "y", "x"}),
    ({1, 2}, frozenset({2, 1})),
    (b"x", bytearray(b"x")),
    (
        dt.datetime(2024, 1, 1, 12, tzinfo=dt.UTC),
        dt.datetime(2024, 1, 1, 14, tzinfo=dt.timezone(dt.timedelta(hours=2))),
    ),
    (np.array([1, 2], dtype="<i4"), np.array([1, 2], dtype=">i4")),
    (np.array([[1, 2], [3, 4]]).T, np.array([[1, 3], [2, 4]])),
    (Model(name="a", options={"x": 1, "y": 2}), Model(name="a", options={"y": 2, "x": 1})),
    (float("nan"), float("nan")),
]


@pytest.mark.parametrize("left, right", SAME, ids=range(len(SAME)))
def test_what_means_the_same_has_the_same_key(left: Any, right: Any) -> None:
    assert digest_value(left, "x") == digest_value(right, "x")


@given(st.dictionaries(st.text(max_size=5), json_values, max_size=5))
def test_the_order_of_a_mapping_decides_nothing(value: dict[str, Any]) -> None:
    assert digest_value(value, "x") == digest_value(dict(reversed(list(value.items()))), "x")


@given(json_values, json_values)
def test_unequal_json_never_shares_a_digest(left: Any, right: Any) -> None:
    same = orjson.dumps(left, option=orjson.OPT_SORT_KEYS) == orjson.dumps(right, option=orjson.OPT_SORT_KEYS)
    assert (digest_value(left, "x") == digest_value(right, "x")) == same


def test_the_order_and_the_names_of_arguments() -> None:
    assert key_of(a=1, b=2).key == key_of(b=2, a=1).key
    assert key_of(a=1, b=2).key != key_of(a=2, b=1).key
    assert key_of(a=1).key != key_of(b=1).key


def test_a_file_counts_by_its_bytes_and_not_by_its_name(tmp_path: Path) -> None:
    one, two = tmp_path / "a.mp3", tmp_path / "other" / "b.mp3"
    two.parent.mkdir()
    one.write_bytes(b"sound")
    two.write_bytes(b"sound")
    key = key_of(audio=one).key
    assert key == key_of(audio=two).key
    assert key == key_of(audio=CachedFile.from_path(one)).key
    assert key == key_of(audio=fsspec.open(two.as_uri())).key
    assert key != key_of(audio=str(one)).key, "a text is a text"
    one.write_bytes(b"SOUND")
    assert key != key_of(audio=one).key


def test_a_folder_counts_by_relative_names_and_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub" / "a.txt").write_text("a")
    assert digest_path(tmp_path / "one") == digest_path(tmp_path / "two")
    (tmp_path / "two" / "sub" / "a.txt").rename(tmp_path / "two" / "sub" / "b.txt")
    assert digest_path(tmp_path / "one") != digest_path(tmp_path / "two")


def test_a_missing_file_is_an_os_error_of_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.mp3"):
        key_of(audio=tmp_path / "gone.mp3")


def test_ignored_arguments_do_not_count_and_are_not_shown() -> None:
    built = key_of(ignore=("verbose", "handle"), audio="a", verbose=True, handle=object())
    assert built.key == key_of(audio="a").key
    assert set(built.manifest()["inputs"]) == {"audio"}


SOURCE = '''
@task(retries=3)
def transcribe(audio, *, beam=5):
    """Turn speech to text."""
    if beam > 1:
        return {"text": f"{audio['name']} {beam!r}"}
    return None
'''


@pytest.mark.parametrize(
    "changed",
    [
        SOURCE.replace("    if beam", "    # wide enough\n    if beam"),
        SOURCE.replace("beam > 1:", "(beam   >   1):  # ok"),
        SOURCE.replace("Turn speech to text.", "Something else entirely."),
        SOURCE.replace('    """Turn speech to text."""\n', ""),
        SOURCE.replace("@task(retries=3)", "@cached_task(kind=TRANSCRIPT)\n@other"),
        SOURCE.replace("@task(retries=3)\n", ""),
        "\n".join("    " + line for line in SOURCE.splitlines()),
        SOURCE.replace("\n    return None", "\n\n\n    return None\n"),
    ],
    ids=["comment", "formatting", "docstring", "no docstring", "decorators", "no decorator", "indented", "blank lines"],
)
def test_what_does_not_compute_does_not_count(changed: str) -> None:
    assert changed != SOURCE
    assert normalise_source(changed) == normalise_source(SOURCE)


@pytest.mark.parametrize(
    "changed",
    [
        SOURCE.replace("beam > 1", "beam > 2"),
        SOURCE.replace("beam=5", "beam=4"),
        SOURCE.replace("'name'", "'title'"),
        SOURCE.replace("!r", ""),
        SOURCE.replace("    return None", "    return False"),
        SOURCE.replace("*, ", ""),
    ],
)
def test_a_changed_line_counts(changed: str) -> None:
    task = TaskIdentity("transcribe", "transcribe", source=SOURCE)
    assert changed != SOURCE
    assert key_of(task=task).key != key_of(task=dataclasses.replace(task, source=changed)).key


def test_a_docstring_alone_is_a_function_too() -> None:
    assert normalise_source('def f():\n    """Nothing."""') == normalise_source("def f(): pass")


def test_a_source_that_does_not_parse_counts_as_it_is() -> None:
    assert normalise_source("lambda x: (x") == "lambda x: (x"


def test_a_version_stands_for_the_source() -> None:
    one = TaskIdentity("t", "t", version="1", source="def t(): return 1")
    other = dataclasses.replace(one, source="def t(): return 2")
    assert key_of(task=one).key == key_of(task=other).key
    assert key_of(task=one).key != key_of(task=dataclasses.replace(one, version="2")).key
    assert key_of(task=one).manifest()["version"] == "1"
    assert "source" not in key_of(task=one).manifest()


def test_tasks_of_another_name_or_qualified_name_share_nothing() -> None:
    keys = {key_of(task=TaskIdentity(name, function, version="1")).key for name in "ab" for function in "cd"}
    assert len(keys) == 4


def test_a_secret_decides_the_key_and_is_nowhere_in_clear() -> None:
    built = key_of(api_key=pydantic.SecretStr("hunter2"), raw=pydantic.SecretBytes(b"hunter2"))
    assert b"hunter2" not in orjson.dumps(built.manifest())
    assert built.manifest()["inputs"]["api_key"]["shown"] == "**********"
    assert built.key != key_of(api_key=pydantic.SecretStr("hunter3"), raw=pydantic.SecretBytes(b"hunter2")).key


def test_a_manifest_can_be_stored_whatever_the_arguments_are_called() -> None:
    """File names on Linux are bytes: a name that is no UTF-8 comes as text with lone surrogates."""
    built = key_of(name=os.fsdecode(b"caf\xe9.mp3"), text="x" * 10_000, nothing=None, options={"a": 1})
    stored = orjson.dumps(built.manifest())
    assert len(stored) < 1500


@pytest.mark.parametrize(
    "value, where, type_name",
    [
        (object(), "options", "builtins.object"),
        ({"model": {"callback": print}}, "options.model.callback", "builtins.builtin_function_or_method"),
        ([1, object()], "options[1]", "builtins.object"),
        (Model(name="a", options={"f": sys}), "options.options.f", "builtins.module"),
        (Options(object()), "options.beam", "builtins.object"),  # pyright: ignore[reportArgumentType]
        (np.array([object()]), "options", "numpy.ndarray"),
        (PurePosixPath("a"), "options", "pathlib.PurePosixPath"),
    ],
)
def test_what_has_no_digest_is_named_with_its_path_and_a_way_out(value: Any, where: str, type_name: str) -> None:
    with pytest.raises(UnhashableArgumentError) as refusal:
        key_of(options=value)
    assert refusal.value.argument == where
    assert refusal.value.type_name == type_name
    assert "cache_ignore=('options',)" in str(refusal.value)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(UnhashableArgumentError, match="contains itself"):
        key_of(options=loop)


def test_tags_are_texts_or_functions_of_the_arguments() -> None:
    built = build_key(
        TRANSCRIPT,
        TASK,
        {"audio": "a.mp3", "model": "tiny"},
        tags=["fixed", lambda arguments: f"model:{arguments['model']}", lambda _: ["b", "a", "a"]],
    )
    assert built.tags == ("a", "b", "fixed", "model:tiny")


@pytest.mark.parametrize(
    "tags",
    [
        [""],
        ["a\nb"],
        ["a\x00"],
        ["\u2028"],
        ["x" * (MAX_TAG_LENGTH + 1)],
        [str(number) for number in range(MAX_TAGS + 1)],
        ["\ud800"],
    ],
    ids=["empty", "newline", "nul", "line separator", "long", "many", "surrogate"],
)
def test_tags_that_cannot_be_kept_are_refused(tags: list[str]) -> None:
    with pytest.raises(InvalidKeyError):
        check_tags(tags)


def test_keys_without_a_task() -> None:
    assert make_key(SEARCH_RESULTS, "query", 10) == make_key(SEARCH_RESULTS, "query", 10)
    assert make_key(SEARCH_RESULTS, "query", 10) != make_key(TRANSCRIPT, "query", 10)
    assert make_key(SEARCH_RESULTS, "query", 10).startswith("search-results:")


VECTOR_VALUES: dict[str, Any] = {
    "none": None,
    "int": 1,
    "big int": 2**80,
    "float": 1.0,
    "tiny float": 5e-324,
    "true": True,
    "text": "Äöü 日本語",
    "bytes": b"\x00\xff",
    "nested": {"b": [1, (2, {3, "x"})], "a": {"": None}},
    "datetime": dt.datetime(2024, 2, 29, 12, tzinfo=dt.UTC),
    "timedelta": dt.timedelta(days=-1, microseconds=1),
    "decimal": Decimal("1.10"),
    "enum": Style.PLAIN,
    "int enum": Level.ONE,
    "model": Model(name="a", options={"x": [1.5]}),
    "dataclass": Options(5, ("a",)),
    "secret": pydantic.SecretStr("s"),
    "array": np.arange(6, dtype="float32").reshape(2, 3),
}


@pytest.mark.parametrize("name", VECTOR_VALUES)
def test_digests_are_what_they_were_in_every_release_and_python_version(name: str) -> None:
    assert digest_value(VECTOR_VALUES[name], name) == VECTORS["values"][name]


def test_the_vectors_are_all_used() -> None:
    assert set(VECTORS["values"]) == set(VECTOR_VALUES)


@pytest.mark.parametrize("name", VECTORS["sources"])
def test_the_digest_of_a_source_is_the_same_in_every_python_version(name: str) -> None:
    vector = VECTORS["sources"][name]
    assert TaskIdentity("t", "t", source=vector["source"]).parts()["source"] == vector["digest"]


def test_a_whole_key_is_what_it_was() -> None:
    built = build_key(TRANSCRIPT, TaskIdentity("t", "m.t", version="3"), {"beam": 5, "language": None})
    assert built.key == VECTORS["key"]


def test_keys_do_not_depend_on_the_hash_seed_of_a_process() -> None:
    code = "from cache_blocks.canonical import digest_value as d; print(d({'a': {'x', 'y', 'z'}, 'b': {1: 2}}, 'n'))"
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert digests == {digest_value({"b": {1: 2}, "a": {"z", "y", "x"}}, "n") + "\n"}

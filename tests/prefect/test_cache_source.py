"""`cache_source`: what a task calls counts like its own source, wherever the task then runs."""

import importlib.util
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import cloudpickle
import pytest
from prefect import flow, task
from prefect.task_runners import ProcessPoolTaskRunner

from cache_blocks import TRANSCRIPT, TieredCache, TieredCachePolicy, cached_task, tiered_cache_key_fn
from cache_blocks import events as actions
from cache_blocks.errors import ConfigurationError
from cache_blocks.maintenance import ls, show
from cache_blocks.sources import Sources
from tests.prefect.observed import BYPASSED, errors_of, outcomes, recorded

HELPERS = '''
"""What a task uses."""
LIMIT = 3


def cut(text):
    """Cut a text."""
    return text[:3]  # the limit


class Cutter:
    def cut(self, text):
        return text[:3]


def cutting(limit, after):
    def cut_at(text):
        return after(text[:limit])
    return cut_at
'''
Load = Callable[..., ModuleType]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads `HELPERS`, changed, from a folder of its own."""
    numbers = iter(range(100))

    def load(old: str = "", new: str = "", name: str = "helpers") -> ModuleType:
        assert old in HELPERS
        folder = tmp_path / f"{next(numbers)}"
        folder.mkdir()
        path = folder / f"{name}.py"
        path.write_text(HELPERS.replace(old, new) if old else HELPERS)
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)  # where Python looks for the file of a class
        spec.loader.exec_module(module)
        return module

    return load


def add_one(text: str) -> str:
    return text + "1"


def add_two(text: str) -> str:
    return text + "2"


def as_function(helper: Any) -> Callable[[str], str]:
    return helper


SHOWN: dict[str, Callable[[ModuleType], Any]] = {
    "function": lambda module: module.cut,
    "class": lambda module: module.Cutter,
    "module": lambda module: module,
    "task": lambda module: task(as_function(module.cut)),
}


@pytest.mark.promise(
    "A changed helper that cache_source names is a new key", tries="functions, classes, modules, closures"
)
@pytest.mark.parametrize("what", SHOWN)
def test_a_change_counts_and_a_comment_does_not(load: Load, what: str) -> None:
    def digests(*change: str) -> dict[str, str]:
        return Sources([SHOWN[what](load(*change))]).digests()

    assert digests("text[:3]", "text[:4]") != digests()
    assert digests("# the limit", "# of three") == digests()
    assert digests('"""Cut a text."""', "") == digests()


def test_a_module_counts_as_a_whole_and_a_function_alone(load: Load) -> None:
    changed, same = load("LIMIT = 3", "LIMIT = 4"), load()
    assert Sources([changed]).digests() != Sources([same]).digests()
    assert Sources([changed.cut]).digests() == Sources([same.cut]).digests()
    assert Sources([load('"""What a task uses."""', '"""Otherwise put."""')]).digests() == Sources([same]).digests()


def test_what_a_closure_has_closed_over_counts(load: Load) -> None:
    cutting = load().cutting
    digests = [
        Sources([cutting(limit, after)]).digests() for limit, after in ((3, add_one), (4, add_one), (3, add_two))
    ]
    assert len({str(one) for one in digests}) == 3
    assert Sources([cutting(3, add_one)]).digests() == digests[0]


@pytest.mark.parametrize("wrong", [3, "helper", len, None], ids=repr)
def test_what_has_no_source_of_its_own_is_refused_where_it_is_declared(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="cache_source takes functions, classes and modules"):
        cached_task(kind=TRANSCRIPT, cache_source=[wrong])(add_one)


def key_of(cache: TieredCache) -> str:
    return recorded(cache, actions.LOOKUP)[-1].key


@pytest.mark.parametrize("version", [None, "1"])
def test_the_key_of_a_task_changes_with_its_helper_and_the_manifest_names_it(
    cache: TieredCache, load: Load, version: str | None
) -> None:
    def key_with(helper: Any) -> str:
        cached_task(kind=TRANSCRIPT, cache_version=version, cache_source=[helper])(add_one)("x")
        return key_of(cache)

    keys = [key_with(load().cut), key_with(load("# the limit", "# again").cut), key_with(load("[:3]", "[:4]").cut)]

    assert keys[0] == keys[1] != keys[2]
    found = show(cache, keys[0])
    assert found is not None
    assert "source of helper cut" in found.as_dict()["manifest"]
    assert len(ls(cache)) == 2


def test_both_bare_forms_take_it_too(cache: TieredCache, load: Load) -> None:
    keys: list[str] = []
    for change in ((), ("[:3]", "[:4]")):
        helper = load(*change).cut
        task(cache_policy=TieredCachePolicy(TRANSCRIPT, cache_source=[helper]))(add_one)("x")
        keys.append(key_of(cache))
        task(cache_key_fn=tiered_cache_key_fn(TRANSCRIPT, cache_source=[helper]))(add_one)("x")
        keys.append(key_of(cache))
    assert keys[0] == keys[1] != keys[2] == keys[3]


def test_a_helper_whose_file_has_changed_under_a_running_process_bypasses_the_cache(
    cache: TieredCache, load: Load, caplog: pytest.LogCaptureFixture
) -> None:
    """What is on the disk is not what runs, so that neither source may be in the key."""
    helpers = load()
    cached = cached_task(kind=TRANSCRIPT, cache_source=[helpers.cut])(add_one)
    path = Path(str(helpers.__file__))
    path.write_text(HELPERS.replace("[:3]", "[:4]"))

    assert cached("x") == "x1"

    assert outcomes(cache) == [BYPASSED]
    assert "has changed since" in errors_of(caplog)[0]
    path.unlink()
    travelled: Sources = pickle.loads(pickle.dumps(Sources([load().cut])))  # noqa: S301 - our own bytes
    assert travelled.digests() == Sources([load().cut]).digests()


def test_decorating_reads_no_file(load: Load) -> None:
    helpers = load()
    Path(str(helpers.__file__)).unlink()
    sources = Sources([helpers.cut, helpers])
    with pytest.raises(ConfigurationError, match="cannot show the source"):
        sources.digests()
    travelled: Sources = pickle.loads(pickle.dumps(sources))  # noqa: S301 - our own bytes
    with pytest.raises(ConfigurationError, match="cannot show the source"):
        travelled.digests()


def test_a_process_without_the_source_has_the_same_digests(load: Load, child_environment: dict[str, str]) -> None:
    helpers = load()
    policy = TieredCachePolicy(TRANSCRIPT, cache_source=[helpers.cut, helpers])
    sent = cloudpickle.dumps(policy)
    Path(str(helpers.__file__)).unlink()
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).cache_source.digests())"
    done = subprocess.run(
        [sys.executable, "-c", program], input=sent, env=child_environment, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == str(policy.cache_source.digests())


@cached_task(kind=TRANSCRIPT, cache_source=[add_two])
def twice_added(text: str) -> str:
    return add_two(add_two(text))


@flow(task_runner=cast("Any", ProcessPoolTaskRunner(max_workers=1)))
def in_another_process() -> str:
    return twice_added.submit("x").result()


def test_a_hit_in_a_process_pool_is_what_a_direct_call_has_stored(cache: TieredCache) -> None:
    assert twice_added("x") == "x22"
    assert in_another_process() == "x22"
    assert len({event.key for event in recorded(cache, actions.LOOKUP)}) == 1
    assert outcomes(cache)[-1] == "hit"

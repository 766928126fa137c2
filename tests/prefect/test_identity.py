"""One task has one key: as a script, as a deployment's entrypoint, from any checkout; until what it does changes."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from prefect.flows import load_flow_from_entrypoint

from cache_blocks import TieredCache
from cache_blocks import events as actions
from tests.prefect.observed import HIT, MISS, outcomes, recorded, run_python

MODULE = '''
from prefect import flow

from cache_blocks import TRANSCRIPT, cached_task


@cached_task(kind=TRANSCRIPT)
def length(text: str) -> int:
    """Count letters."""
    return len(text)


@flow
def lengths(text: str = "abc") -> int:
    return length(text)


if __name__ == "__main__":
    lengths()
'''
LOAD = "from prefect.flows import load_flow_from_entrypoint as load; load('measuring/measure.py:lengths')()"
IMPORT = "import measuring.measure; measuring.measure.lengths()"


def checkout(folder: Path, text: str = MODULE) -> Path:
    """A project with the module; returns its folder."""
    (folder / "measuring").mkdir(parents=True)
    (folder / "measuring" / "__init__.py").write_text("")
    (folder / "measuring" / "measure.py").write_text(text)
    return folder


def keys_of(cache: TieredCache) -> list[str]:
    return [event.key for event in recorded(cache, actions.LOOKUP)]


def test_script_entrypoint_module_and_copied_checkout_share_one_key(
    tmp_path: Path, cache: TieredCache, child_environment: dict[str, str]
) -> None:
    project = checkout(tmp_path / "project")
    copied = Path(shutil.copytree(project, tmp_path / "somewhere" / "else" / "copied"))

    run_python("measuring/measure.py", cwd=project, environment=child_environment)
    run_python("-c", LOAD, cwd=project, environment=child_environment)
    run_python(copied / "measuring" / "measure.py", cwd=tmp_path, environment=child_environment)
    run_python("-c", IMPORT, cwd=copied, environment=child_environment)

    assert len(keys_of(cache)) == 4
    assert len(set(keys_of(cache))) == 1
    assert outcomes(cache) == [MISS, HIT, HIT, HIT]


@pytest.fixture
def run_variant(tmp_path: Path, cache: TieredCache) -> Any:
    """Runs the flow of a module like `MODULE` that has been changed, and gives the key that its task had."""
    number = iter(range(100))

    def run(*changes: tuple[str, str]) -> str:
        text = MODULE
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        project = checkout(tmp_path / f"variant-{next(number)}", text)
        load_flow_from_entrypoint(f"{project}/measuring/measure.py:lengths")()
        return keys_of(cache)[-1]

    return run


BODY = "    return len(text)"


@pytest.mark.parametrize(
    "changes",
    [
        [(BODY, "    # Letters, not words.\n    return len(text)  # all of them")],
        [(BODY, "\n    return   len( text )\n")],
        [('"""Count letters."""', '"""Say how many letters there are."""')],
        [("@cached_task(kind=TRANSCRIPT)", "@cached_task(kind=TRANSCRIPT, retries=3, tags={'slow'})")],
        [("def lengths(text", "def lengths(number: int = 1, text")],
        [("@flow\n", "@flow(name='another')\n")],
    ],
    ids=["comment", "formatting", "docstring", "task options", "flow's parameters", "flow's name"],
)
def test_what_does_not_change_the_result_does_not_change_the_key(run_variant: Any, changes: Any) -> None:
    assert run_variant(*changes) == run_variant()


@pytest.mark.parametrize(
    "changes",
    [
        [(BODY, "    return len(text) + 0")],
        [("def length(", "def size("), ("return length(", "return size(")],
        [("kind=TRANSCRIPT", "kind=TRANSCRIPT, name='counted'")],
        [("import TRANSCRIPT", "import AI_ENHANCEMENT"), ("kind=TRANSCRIPT", "kind=AI_ENHANCEMENT")],
        [('"abc"', '"abcd"')],
        [("kind=TRANSCRIPT", "kind=TRANSCRIPT, cache_version='1'")],
    ],
    ids=["line", "function", "task", "kind", "argument", "version"],
)
def test_what_may_change_the_result_changes_the_key(run_variant: Any, changes: Any) -> None:
    assert run_variant(*changes) != run_variant()


def test_a_version_stands_for_the_source(run_variant: Any) -> None:
    first = ("kind=TRANSCRIPT", "kind=TRANSCRIPT, cache_version='1'")
    second = ("kind=TRANSCRIPT", "kind=TRANSCRIPT, cache_version='2'")
    rewritten = (BODY, "    return sum(1 for _ in text)")

    assert run_variant(first) == run_variant(first, rewritten)
    assert run_variant(first) != run_variant(second)

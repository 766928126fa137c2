"""The site builds without a warning, holds what the code says, and needs nothing from elsewhere."""

import inspect
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
import typer
from typer.testing import CliRunner

from cache_blocks import TRANSCRIPT, CacheError, CacheSettings, TieredCache
from cache_blocks import __all__ as public
from cache_blocks.cli.app import app
from cache_blocks.kinds import BUILT_IN_KINDS
from tests.docs.blocks import ROOT

pytest.importorskip("zensical", reason="`make docs` installs what builds the site")

Build = Callable[[], subprocess.CompletedProcess[str]]


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """What the site is made from, in a folder of its own."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "zensical.toml", tmp_path)
    (tmp_path / "cache_blocks").symlink_to(ROOT / "cache_blocks")
    return tmp_path


@pytest.fixture
def build(sources: Path) -> Build:
    """Builds the site as `make docs` does."""
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    return lambda: subprocess.run(command, cwd=sources, capture_output=True, text=True, check=False)


@pytest.fixture
def site(sources: Path, build: Build) -> Path:
    """The built site."""
    done = build()
    assert done.returncode == 0, done.stdout + done.stderr
    return sources / "build" / "site"


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))


def test_the_reference_is_complete_and_the_site_stands_alone(site: Path) -> None:
    reference = site / "reference"
    python = (
        text_of(reference / "python.html") + text_of(reference / "kinds.html") + text_of(reference / "settings.html")
    )
    assert not [name for name in public if name not in python]
    settings = text_of(reference / "settings.html")
    assert not [name for name in CacheSettings.model_fields if f"CACHE_BLOCKS_{name.upper()}" not in settings]
    kinds = text_of(reference / "kinds.html")
    assert not [kind.name for kind in BUILT_IN_KINDS if kind.name not in kinds]
    commands = text_of(reference / "command-line.html")
    assert not [name for name in commands_of(app) if f"cache-blocks {name}" not in commands]
    assert all(
        error.__name__ in python for error in CacheError.__subclasses__() if error.__module__ == CacheError.__module__
    )
    for page in site.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(?:https?:)?//[^"]+"', page.read_text())
        assert not loaded, f"{page} loads from elsewhere"
        pictures = re.findall(r'<img[^>]+src="([^"]+)"', page.read_text())
        assert not [picture for picture in pictures if not (page.parent / picture).exists()], page
    assert not list(site.rglob("*.py"))


@pytest.mark.parametrize(
    "words",
    [
        ["stats"],
        ["ls"],
        ["show", "transcript:a"],
        ["invalidate", "--key", "transcript:a", "--dry-run"],
        ["forget", "samples/austen-880.wav", "--dry-run"],
        ["gc"],
        ["verify"],
        ["doctor"],
    ],
    ids=lambda words: words[0],
)
def test_the_reference_names_every_field_of_json(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    TieredCache.from_settings().put("transcript:a", "kept", kind=TRANSCRIPT)
    done = CliRunner().invoke(app, [*words, "--json"])
    document: Any = orjson.loads(done.stdout)
    fields = cast("dict[str, Any]", document[0] if isinstance(document, list) else document)
    command = next(command for command in app.registered_commands if command.name == words[0])
    described = inspect.getdoc(command.callback) or ""
    assert not [name for name in fields if name not in described], described


def test_every_command_that_writes_json_describes_it() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        if "json" in inspect.signature(command.callback).parameters:
            assert "JSON:" in (inspect.getdoc(command.callback) or ""), command.name


def commands_of(app: typer.Typer) -> list[str]:
    return [name for command in app.registered_commands if (name := command.name) is not None]


@pytest.mark.parametrize(
    "broken, said",
    [
        ("[a page](nothing.md) [an anchor](tutorial.md#nothing)", ["page does not exist", "anchor does not exist"]),
        ("::: cache_blocks.nothing", ["cache_blocks.nothing"]),
    ],
)
def test_what_leads_nowhere_is_an_error(sources: Path, build: Build, broken: str, said: list[str]) -> None:
    with (sources / "docs" / "index.md").open("a") as page:
        page.write(f"\n{broken}\n")
    done = build()
    assert done.returncode != 0
    assert all(words in done.stdout + done.stderr for words in said)

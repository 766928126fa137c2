"""Every command and code block of the README works as it stands.

Two are run elsewhere: `make test` by whoever runs this, and the deployment's commands by
`tests/pipeline/test_deployment.py`; a test here compares the two.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW, temporary_settings

from cache_blocks import NO_VALUE, TRANSCRIPT, CacheKind, CacheSettings, TieredCache
from tests.docs.blocks import ROOT, Block, blocks_of, shell_block
from tests.pipeline.test_deployment import DEPLOY, ON_DEMAND

README = "README.md"
PARTS = ("Makefile", "README.md", "pyproject.toml", "requirements", "samples", "flows", "tasks", "cache_blocks")
RUN_BY = {
    "make demo": "test_make_demo_and_the_command_line",
    "make test": "whoever runs the tests",
    "pip install .": "test_the_wheel_holds_the_plugin_alone",
    "cache-blocks stats": "test_make_demo_and_the_command_line",
    "export CACHE_BLOCKS_REDIS_URL": "test_the_settings_are_understood",
    "prefect work-pool create": "tests/pipeline/test_deployment.py",
    "prefect deployment run": "tests/pipeline/test_deployment.py",
    "from pathlib import Path": "test_the_adoption_example_caches",
    "from datetime import timedelta": "test_a_kind_is_one_line",
    "from cache_blocks import TRANSCRIPT, TieredCache": "test_the_invalidation_example_invalidates",
}


def test_no_block_is_left_out() -> None:
    for block in blocks_of(README):
        assert any(block.text.startswith(start) for start in RUN_BY), f"nobody runs:\n{block.text}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of this checkout with the same environment, whose .demo is its own."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, copy / part)
    (copy / ".venv").symlink_to(ROOT / ".venv")
    for file in (copy / "pyproject.toml", *(copy / "requirements").iterdir()):
        os.utime(file, (0, 0))  # or make, after a change, would install the package into the environment from here
    return copy


def run(command: str, folder: Path, **extra: str) -> str:
    """Run a command as a newcomer would, in a shell of its own, and return what it printed."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MAKE", "MFLAGS", "ARGS", "PREFECT_", "CACHE_BLOCKS_", "PYTEST_"))
    }
    environment = inherited | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", **extra}
    done = subprocess.run(  # noqa: S602 - the README's commands are for a shell
        command, cwd=folder, env=environment, shell=True, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.mark.skipif(not (ROOT / ".venv" / "demo.stamp").exists(), reason="the environment was not made by make")
def test_make_demo_and_the_command_line(checkout: Path) -> None:
    said = run("make demo", checkout)
    first, second = said.split("Second run")
    assert "speech model loaded" in first
    assert "speech model not needed" in second
    assert "0 output files written" in second
    assert (checkout / ".demo" / "cache-report.md").read_text().startswith("#")
    assert len(list((checkout / ".demo" / "output").glob("*.srt"))) == 5
    for command in shell_block(README, "cache-blocks stats").commands:
        run(command, checkout, CACHE_BLOCKS_HOME=str(checkout / ".demo" / "cache"))


def test_the_commands_of_the_deployment_are_those_that_its_test_runs() -> None:
    told = [shlex.split(line) for start in ("prefect work-pool", "prefect deployment run") for line in
            shell_block(README, start).commands]  # fmt: skip
    run_by_test = [
        ["work-pool", "create", "speech", "--type", "process"],
        DEPLOY,
        ["worker", "start", "--pool", "speech"],
    ]
    assert [words[1:] for words in told[:3]] == run_by_test
    assert told[3][:4] == ["prefect", "deployment", "run", ON_DEMAND]


def test_the_wheel_holds_the_plugin_alone(tmp_path: Path) -> None:
    run(f"{sys.executable} -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir {tmp_path} .", ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.partition("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cache_blocks"}


def test_the_adoption_example_caches(tmp_path: Path, prefect_server: str) -> None:
    module = _import(_python("from pathlib import Path"), tmp_path)
    recordings = tmp_path / "recordings"
    recordings.mkdir()
    (recordings / "a.wav").write_bytes(b"RIFF" + bytes(40))
    assert prefect_server
    assert module.nightly(recordings) == module.nightly(recordings)
    with temporary_settings({PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW: "ignore"}):  # a task without a flow
        state: State[object] = module.transcribe(recordings / "a.wav", return_state=True)
    assert state.name == "Cached"


def test_a_kind_is_one_line(tmp_path: Path) -> None:
    module = _import(_python("from datetime import timedelta"), tmp_path)
    assert isinstance(module.DIARIZATION, CacheKind)


def test_the_invalidation_example_invalidates(tmp_path: Path) -> None:
    cache = TieredCache.from_settings()
    cache.put("transcript:a", "kept", kind=TRANSCRIPT)
    _import(_python("from cache_blocks import TRANSCRIPT, TieredCache"), tmp_path)
    assert cache.get("transcript:a") is NO_VALUE


def test_the_settings_are_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict(
        shlex.split(line.removeprefix("export "))[0].split("=", 1)
        for line in shell_block(README, "export CACHE_BLOCKS_REDIS_URL").commands
    )
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = CacheSettings()
    for name, value in given.items():
        field = getattr(settings, name.removeprefix("CACHE_BLOCKS_").lower())
        assert (field if isinstance(field, str) else field.get_secret_value()) == value


def test_the_settings_of_the_table_exist() -> None:
    """The reference has all of them, which `test_site` sees to."""
    told = re.findall(r"^\| `CACHE_BLOCKS_(\w+)`", (ROOT / README).read_text(), re.MULTILINE)
    assert told
    assert {name.lower() for name in told} <= CacheSettings.model_fields.keys()


def _python(start: str) -> Block:
    return next(block for block in blocks_of(README) if block.language == "python" and block.text.startswith(start))


def _import(block: Block, folder: Path) -> ModuleType:
    """Run a block as a file of its own: Prefect reads a task's source."""
    file = folder / "example.py"
    file.write_text(block.text)
    spec = importlib.util.spec_from_file_location("example", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

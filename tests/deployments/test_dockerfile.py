"""The image's Dockerfile: by a linter, and by what it promises."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sysconfig
from pathlib import Path

from tests.pipeline.batches import ROOT

DOCKERFILE = ROOT / "deployments" / "Dockerfile"
LINES = re.sub(r"\\\n\s*", "", DOCKERFILE.read_text()).splitlines()
INSTRUCTIONS = [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in LINES if line and not line.startswith("#")]


def arguments_of(instruction: str) -> list[str]:
    """What an instruction is given, each time that it is there."""
    return [arguments for name, arguments in INSTRUCTIONS if name == instruction]


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sysconfig.get_path("scripts")) / "hadolint"
    done = subprocess.run([hadolint, "--failure-threshold", "style", DOCKERFILE], capture_output=True, check=False)
    assert (done.stdout, done.returncode) == (b"", 0)


def test_it_runs_as_nobody_in_particular_and_what_built_it_stays_behind() -> None:
    first, last = (start for start, (name, _) in enumerate(INSTRUCTIONS) if name == "FROM")
    assert first < last
    copied = [arguments for name, arguments in INSTRUCTIONS[last:] if name == "COPY"]
    assert copied[0] == "--from=packages /opt/venv /opt/venv"
    assert not [arguments for name, arguments in INSTRUCTIONS[last:] if name == "RUN" and "pip" in arguments]
    (user,) = arguments_of("USER")
    assert int(user) >= 10_000, "a number, since Kubernetes cannot tell of a name that it is not root's"
    assert "pip uninstall --yes editables hatchling pip" in arguments_of("RUN")[2]


def test_every_package_is_pinned_with_its_hashes() -> None:
    first, second = (run for run in arguments_of("RUN") if "pip install" in run)
    assert "--require-hashes -r demo.txt" in first
    assert "--no-deps --no-build-isolation" in second
    requirements = (ROOT / "requirements" / "demo.txt").read_text().split("\n    --hash")
    pinned = re.findall(r"^[\w.\[\]-]+==\S+", (ROOT / "requirements" / "demo.txt").read_text(), re.MULTILINE)
    assert len(requirements) > len(pinned) > 100
    assert {"hatchling", "editables", "prefect"} <= {line.partition("==")[0] for line in pinned}


def test_what_it_copies_is_there_and_reaches_the_build() -> None:
    ignored = (ROOT / "deployments" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    assert next(line for line in ignored if not line.startswith("#")) == "*"
    for arguments in arguments_of("COPY"):
        *sources, _ = arguments.split()
        for source in sources if not sources[0].startswith("--from") else ():
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, one) for one in kept), source
    assert not [one for one in kept if fnmatch.fnmatch("deployments/.env", f"{one}*") or one.startswith(".")]


def test_it_has_no_secret() -> None:
    """Nothing is handed in by ARG or ENV that would stay in a layer."""
    assert arguments_of("ARG") == ["PYTHON=3.11-slim-bookworm"]
    names = {word.partition("=")[0] for arguments in arguments_of("ENV") for word in arguments.split()}
    assert names == {"PATH", "PYTHONPATH", "PYTHONUNBUFFERED", "CACHE_BLOCKS_HOME"}


def test_the_flows_that_are_deployed_are_in_it() -> None:
    copied = {arguments.split()[0] for arguments in arguments_of("COPY")}
    entrypoints = re.findall(r"entrypoint: (\w+)/", (ROOT / "deployments" / "prefect.yaml").read_text())
    assert entrypoints
    assert set(entrypoints) <= copied

"""Runs a page of the documentation from top to bottom, as a reader would.

What a block is for follows from its fence:

- ``python`` with a title is that file. If the file is there already, the functions of the block replace those of the
  same names in it, and imports are added: a tutorial shows what changes, and not all of it again.
- ``python`` without a title is run where the reader is, in this process.
- ``sh`` is run by a shell. ``export`` holds for all that follows; a command that a reader would give a shell of its own
  runs until the page is done.
- ``text`` is what the block before has printed, or some of it: its lines in this order, ``…`` for anything.
- ``diff`` changes the file that it names: the lines before become the lines after, wherever they are.
- Anything else with a title is that file.
"""

import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.docs.blocks import ROOT, Block
from tests.servers.process import ServerProcess

SERVERS = {"prefect worker start": "Worker .* started"}
"""Commands that go on for ever, and what they say when they are ready."""
_SECONDS = 120
_CHECKOUT = ("samples", "flows", "tasks", "deployments")
"""What pages speak of; a copy, because some change it."""


class Reader:
    """Somebody who follows a page in an empty folder of a checkout.

    Args:
        folder: Where; it gets the parts of the checkout that pages speak of.
        instead: Replacements for addresses and secrets that pages can only make up.
        monkeypatch: Undoes what the page exports.
    """

    def __init__(self, folder: Path, instead: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        self._instead = instead
        self._monkeypatch = monkeypatch
        self._printed = ""
        self._blocks = 0
        self._servers = ExitStack()

    def __enter__(self) -> Self:
        self._folder.mkdir()
        for part in _CHECKOUT:
            shutil.copytree(ROOT / part, self._folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        self._monkeypatch.chdir(self._folder)
        self._monkeypatch.syspath_prepend(str(self._folder))
        self._monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        self._monkeypatch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # of a busy machine
        self._servers.enter_context(_own_modules(self._folder))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._servers.close()

    def read(self, block: Block) -> None:
        """Do what a block says; AssertionError when it does not work as it stands."""
        text = block.text
        for made_up, real in self._instead.items():
            text = text.replace(made_up, real)
        match block.language:
            case "text":
                self._expect(text)
            case "sh":
                self._printed = "".join(self._command(line) for line in _commands(text))
            case "python" if not block.title:
                self._printed = self._run(text)
            case "diff":
                self._patch(text)
            case _:
                assert block.title, f"nobody knows what this block is for:\n{text}"
                self._write(self._folder / block.title, text)

    def _write(self, file: Path, text: str) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".py" and file.exists():
            text = changed(file.read_text(), text)
        file.write_text(text)

    def _patch(self, text: str) -> None:
        name = re.findall(r"^\+\+\+ b/(.*)$", text, re.MULTILINE)[0]
        content = (self._folder / name).read_text()
        lines = [line for line in text.splitlines() if not line.startswith(("+++", "---"))]
        for before, after in _changes(lines):
            assert content.count(before) == 1, f"{name} has no, or no one, place with\n{before}"
            content = content.replace(before, after)
        (self._folder / name).write_text(content)

    def _run(self, text: str) -> str:
        """Run Python as a file of its own, because Prefect and keys read a task's source."""
        self._blocks += 1
        file = self._folder / f"block_{self._blocks}.py"
        file.write_text(text)
        spec = importlib.util.spec_from_file_location(file.stem, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            spec.loader.exec_module(module)
        return printed.getvalue()

    def _command(self, line: str) -> str:
        if line.startswith("export "):
            for given in shlex.split(line.removeprefix("export ")):
                name, value = given.split("=", 1)
                if command := re.fullmatch(r"\$\((.*)\)", value):
                    value = _shell(command[1]).strip()
                self._monkeypatch.setenv(name, value)
            return ""
        ready = next((said for server, said in SERVERS.items() if line.startswith(server)), None)
        if ready is not None:
            server = ServerProcess(shlex.split(line), self._folder / "server.log")
            server.start(ready)
            self._servers.callback(server.stop)
            return ""
        return _shell(line)

    def _expect(self, text: str) -> None:
        rest = self._printed
        for line in filter(str.strip, text.splitlines()):  # one after another: all at once would try every combination
            found = re.search(_pattern(line), rest, re.DOTALL)
            assert found, f"expected:\n{line}\nafter what came before it, in:\n{rest[-5000:]}"
            rest = rest[found.end() :]


def _changes(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what the hunks of a diff replace, and by what; a removed line begins another hunk after added ones."""
    hunks: list[list[str]] = [[]]
    for line in lines:
        if line.startswith(("-", " ")) and any(known.startswith("+") for known in hunks[-1]):
            hunks.append([])
        hunks[-1].append(line)
    for hunk in hunks:
        sides = ([line[1:] for line in hunk if not line.startswith(sign)] for sign in "+-")
        before, after = ("".join(f"{line}\n" for line in side) for side in sides)
        yield before, after


def _pattern(line: str) -> str:
    """Return what finds a printed line, however it is spaced."""
    return ".{0,500}?".join(r"\s+".join(re.escape(word) for word in part.split()) for part in line.split("…"))


def changed(old: str, new: str) -> str:
    """Return a file's text with the functions and classes of ``new`` in the place of those of the same names."""
    if "__main__" in new:
        return new
    lines, old_tree, new_tree = old.splitlines(keepends=True), ast.parse(old), ast.parse(new)
    named = {node.name: node for node in new_tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    for node in reversed(old_tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in named:
            lines[_first_line(node) - 1 : node.end_lineno] = [_source(new, named.pop(node.name)) + "\n"]
    imports = [_source(new, node) for node in new_tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    rest = [_source(new, node) for node in named.values()]
    assert not rest, f"new in a file that has an end already: {rest}"
    return "".join(f"{line}\n" for line in imports) + "".join(lines)


def _first_line(node: ast.FunctionDef | ast.ClassDef) -> int:
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


def _source(text: str, node: ast.stmt) -> str:
    first = _first_line(node) if isinstance(node, ast.FunctionDef | ast.ClassDef) else node.lineno
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _commands(text: str) -> list[str]:
    """Return the commands of a shell block: a line each, unless it ends with a backslash."""
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip() and not line.startswith("#")]


def _shell(command: str) -> str:
    """Run a command and return what it has printed; one that hangs is ended with all that it has started."""
    with subprocess.Popen(  # noqa: S602 - a page's commands are for a shell
        command,
        shell=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            printed, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
    expected = re.search(r"# exit code (\d)", command)
    assert process.returncode == (int(expected[1]) if expected else 0), f"{command}\n{printed[-5000:]}"
    return printed


@contextmanager
def _own_modules(folder: Path) -> Generator[None]:
    """Forget the modules of a folder afterwards, because another page has others of the same names."""
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(str(folder)):
            del sys.modules[name]

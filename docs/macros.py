# ruff: noqa: INP001 - Zensical loads it by its path
"""The parts of the reference that are made from the code whenever the site is built: `{{ settings() }}` in a page."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, Final, get_args

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from cache_blocks import CacheError, CacheKind, CacheSettings
from cache_blocks.kinds import BUILT_IN_KINDS
from cache_blocks.wording import bytes_in_words

_DERIVED: Final = {
    "block": "the namespace",
    "database_url": "`cache.db`, a SQLite file under home",
    "object_store_url": "`objects`, a folder under home",
}
_DAY: Final = timedelta(days=1)


def define_env(env: Any) -> None:
    """Give the pages their macros; Zensical calls this."""
    macros: Iterable[Callable[[], str]] = (settings, kinds, errors, command_line)
    for macro in macros:
        env.macro(macro)


def settings() -> str:
    """Return the table of all settings."""
    rows = [
        (f"`CACHE_BLOCKS_{name.upper()}`", _default(name, field), field.description or "")
        for name, field in CacheSettings.model_fields.items()
    ]
    return _table(("variable", "default", "meaning"), rows)


def _default(name: str, field: FieldInfo) -> str:
    value = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
    if not isinstance(value, bool):
        choices = [f"`{choice}`" for choice in get_args(field.annotation) if isinstance(choice, str)]
        shown = f"`{value}`" if value != "" else _DERIVED.get(name, "")
        return f"{shown} (of {', '.join(choices)})" if choices else shown
    return f"`{str(value).lower()}`"


def kinds() -> str:
    """Return the table of the built-in kinds."""
    columns = ("constant", "name", "lifetime", "tiers", "in Redis up to", "in SQL up to", "in the object store")
    return _table(columns, [_kind(kind) for kind in BUILT_IN_KINDS])


def _kind(kind: CacheKind) -> tuple[str, ...]:
    lifetime = f"{kind.ttl // _DAY} days" if kind.ttl > _DAY else f"{kind.ttl // timedelta(hours=1)} hours"
    stored = "replica of all" if kind.replica else "what is larger" if "object_store" in kind.tiers else "nothing"
    if kind.large_binary:
        limits = ("the descriptor", "the descriptor")
        stored = "all contents"
    else:
        limits = (bytes_in_words(kind.redis_max_bytes), bytes_in_words(kind.sql_max_bytes))
    tiers = ", ".join(tier for tier in ("redis", "sql", "object_store") if tier in kind.tiers)
    return (f"`{kind.name.replace('-', '_').upper()}`", f"`{kind.name}`", lifetime, f"`{tiers}`", *limits, stored)


def errors() -> str:
    """Return the table of all errors, each under the one that it is a case of."""
    return _table(("error", "is a", "when"), list(_errors(CacheError)))


def _errors(base: type[CacheError]) -> Iterator[tuple[str, str, str]]:
    for error in base.__subclasses__():
        if error.__module__ == CacheError.__module__:
            yield (
                f"`{error.__name__}`",
                f"`{base.__name__}`",
                " ".join((inspect.getdoc(error) or "").split("\n\n")[0].split()),
            )
            yield from _errors(error)


def command_line() -> str:
    """Return the reference of the command line, which typer makes from the commands themselves."""
    command = [sys.executable, "-m", "typer", "cache_blocks.cli.app", "utils", "docs", "--name", "cache-blocks"]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    listed = re.compile(r"\*\*Commands\*\*:.*?(?=^## )", re.DOTALL | re.MULTILINE)  # the page has a table of contents
    return listed.sub("", made.partition("\n")[2], count=1).replace("```console\n$ ", "```text\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)

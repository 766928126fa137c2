"""Commands for the beginning: ``init`` and ``import``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cache_blocks.cli.output import Json, emit, progress, say, table, this_cache
from cache_blocks.wording import counted

if TYPE_CHECKING:
    from cache_blocks.settings import CacheSettings

IMPORTING: Final = "flows.importing:import_archive"
_FAILED: Final = "failed"


def init(
    *,
    notify: Annotated[
        str | None,
        typer.Option(metavar="TYPE/NAME", help="Saved notification block to tell of tiers that are down."),
    ] = None,
    json: Json = False,
) -> None:
    """Create the home and the database's tables, and save the block through which later runs load results.

    The block gets the settings that are set in the environment now; the others stay open. JSON: home, database, block,
    block_id, automations.
    """
    from cache_blocks.errors import CacheError

    cache = this_cache()
    try:
        cache.settings.home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheError(f"cannot create {cache.settings.home}: {error.strerror}; set CACHE_BLOCKS_HOME") from error
    version = cache.parts.chain.tier("sql").ping()
    block, block_id = _save_block(cache.settings)
    automations = _save_automations(cache.settings, notify) if notify else []
    home, database = str(cache.settings.home), cache.parts.database.label
    if json:
        done = {"home": home, "database": database, "block": block, "block_id": block_id, "automations": automations}
        emit(done)
        return
    say(f"Home {home}", f"Database {database} ({version})", f"Saved block {block}")
    say(*(f"Automation {name!r}, which tells {notify}" for name in automations))


def _save_block(settings: CacheSettings) -> tuple[str, str]:
    """Register the block type, save the block, and return its name and id."""
    from cache_blocks.prefect.block import TieredCacheBlock
    from cache_blocks.prefect.saved_block import BLOCK_TYPE_SLUG, check_owner, forget_saved_blocks

    check_owner(settings)
    given = settings.model_fields_set & TieredCacheBlock.model_fields.keys()
    values: dict[str, Any] = {name: getattr(settings, name) for name in given}
    if "home" in values:
        values["home"] = str(values["home"])
    block_id: object = TieredCacheBlock(**values).save(settings.block, overwrite=True)
    forget_saved_blocks()
    return f"{BLOCK_TYPE_SLUG}/{settings.block}", str(block_id)


def _save_automations(settings: CacheSettings, block: str) -> list[str]:
    from cache_blocks.prefect.automations import save_automations

    return save_automations(settings.namespace, block)


def import_transcripts(
    folder: Annotated[Path, typer.Argument(exists=True, file_okay=False, help="Audio beside json, txt or srt.")],
    *,
    into: Annotated[
        str, typer.Option(metavar="MODULE:FUNCTION", help="The pipeline's importer, in the working directory.")
    ] = IMPORTING,
    json: Json = False,
) -> None:
    """Bring in existing transcripts, so that they are not paid for twice.

    FOLDER holds recordings and, of the same name, their transcripts. The pipeline's own function decides what becomes
    of each. JSON: a list of name, status, reason. Exit code 1 if one failed.
    """
    from cache_blocks.cli.loading import load_function

    function = load_function(into)
    assert function is not None  # noqa: S101 - only an optional function may be None
    cache, items = this_cache(), list[dict[str, Any]]()
    with progress(quiet=json) as advance:
        found: Iterable[Any] = function(cache, folder)
        for item in found:
            items.append(dict(item))  # a mapping or a pydantic model
            advance("recordings", 1)
    if json:
        emit(items)
    else:
        if items:
            rows = [(item["name"], item["status"], item.get("reason", "")) for item in items]
            table(["recording", "status", "reason"], rows)
        numbers = Counter(str(item["status"]) for item in items)
        what = ", ".join(f"{number:,} {status}" for status, number in sorted(numbers.items()))
        say(f"{counted(len(items), 'recording')}{f': {what}' if what else ''}.")
    if any(item["status"] == _FAILED for item in items):
        raise typer.Exit(1)

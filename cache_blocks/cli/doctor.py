"""``doctor``: look at everything that a cache needs, and say what to do about what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from cache_blocks.cli.output import Json, complain, emit, say, table, this_cache

if TYPE_CHECKING:
    from cache_blocks.cache import TieredCache
    from cache_blocks.cli.checks import Check


def doctor(*, json: Json = False) -> None:
    """Check settings, packages, home, tiers, schema, Prefect and the saved block, and say what to do.

    JSON: healthy; settings (name, value with secrets masked, source); checks (name, state: ok, advice or broken; found;
    way_out). Exit code 1 if something is broken.
    """
    from cache_blocks.cli.settings_shown import settings_shown

    cache = this_cache()
    shown = settings_shown(cache.settings)
    checks = list(_checks(cache))
    healthy = not any(check.state == "broken" for check in checks)
    if json:
        emit({"healthy": healthy, "settings": shown, "checks": checks})
    else:
        table(["setting", "value", "from"], [(one["name"], one["value"], one["source"]) for one in shown])
        table(["check", "state", "found"], [(check.name, check.state, check.found) for check in checks])
        for check in checks:
            if check.way_out:
                complain(f"{check.name}: {check.found}; {check.way_out}")
        say("Everything works." if healthy else "Something is broken, see above.")
    if not healthy:
        raise typer.Exit(1)


def _checks(cache: TieredCache) -> Iterator[Check]:
    from cache_blocks.cli import checks, prefect_checks

    yield from checks.packages()
    yield from checks.variables()
    yield checks.mode(cache.settings)
    yield checks.home(cache.settings)
    yield from checks.tiers(cache)
    yield from checks.redis_memory(cache.settings)
    yield checks.schema(cache)
    yield checks.untold(cache)
    yield from prefect_checks.api_and_block(cache.settings)

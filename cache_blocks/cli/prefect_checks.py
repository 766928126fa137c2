"""Checks of `doctor` that ask Prefect."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cache_blocks.cli.checks import Check
from cache_blocks.cli.settings_shown import masked_url
from cache_blocks.errors import CacheError

if TYPE_CHECKING:
    from cache_blocks.settings import CacheSettings


def api_and_block(settings: CacheSettings) -> Iterator[Check]:
    """Check that Prefect's API answers and has the saved block. Without a configured API none is started for this."""
    try:
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL

        from cache_blocks.prefect.saved_block import BLOCK_TYPE_SLUG, saved_block_id
    except (ImportError, CacheError) as error:
        yield Check("prefect", "broken", f"cannot be imported: {error}", "install the versions above")
        return
    url = PREFECT_API_URL.value()
    if not url:
        yield Check(
            "prefect api",
            "advice",
            "none is configured; every run starts a server of its own",
            "set PREFECT_API_URL to share one",
        )
        return
    with get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    if problem is not None:
        found = f"{masked_url(url)} does not answer ({type(problem).__name__})"
        yield Check("prefect api", "broken", found, "start it with `prefect server start`, or correct PREFECT_API_URL")
        return
    yield Check("prefect api", "ok", masked_url(url))
    name = f"{BLOCK_TYPE_SLUG}/{settings.block}"
    if saved_block_id(settings) is None:
        way_out = "run `cache-blocks init`; until then, later processes cannot load cached results from their states"
        yield Check("saved block", "advice", f"there is no {name} for namespace {settings.namespace}", way_out)
    else:
        yield Check("saved block", "ok", name)

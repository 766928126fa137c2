"""``cache-maintenance``: delete what has expired or was invalidated, and blobs that nothing refers to.

It also publishes the reports of flow runs that died before they could.
"""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from cache_blocks import TieredCache
from cache_blocks.prefect.dead_runs import report_dead_runs


@flow(name="cache-maintenance")
def cache_maintenance() -> dict[str, Any]:
    """Collect the garbage of the cache that the environment names, and publish what it freed.

    What could not be done, because a tier or the API does not answer, is logged as a warning; the next run tries it
    again.

    Returns:
        Counts by name, as in the artifact ``cache-maintenance``: those of the collection, and ``reports``, the flow
        runs that it reported for because they had died.
    """
    cache = TieredCache.from_settings()
    dead = report_dead_runs(cache)  # first, because what they looked up may be about to go
    collected = cache.collect_garbage().as_dict()
    counts: dict[str, Any] = {"reports": dead.reported} | collected | {"errors": [*collected["errors"], *dead.errors]}
    shown = {name.replace("_", " "): _shown(count) for name, count in counts.items()}
    logger = get_run_logger()
    logger.info("maintenance: %s", ", ".join(f"{name} {count}" for name, count in shown.items()))
    for error in counts["errors"]:
        logger.warning("maintenance: %s", error)
    create_table_artifact(
        key="cache-maintenance",
        table=[{"what": name, "count": count} for name, count in shown.items()],
        description="What cache maintenance has freed.",
    )
    return counts


def _shown(count: int | list[str]) -> str:
    """Return a count, or the items of a list, for people."""
    return "; ".join(count) or "none" if isinstance(count, list) else f"{count:,}"


if __name__ == "__main__":
    cache_maintenance()

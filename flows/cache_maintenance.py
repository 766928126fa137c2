"""``cache-maintenance``: delete what has expired or was invalidated, and blobs that nothing refers to."""

from typing import Any

from prefect import flow, get_run_logger
from prefect.artifacts import create_table_artifact

from cache_blocks import TieredCache


@flow(name="cache-maintenance")
def cache_maintenance() -> dict[str, Any]:
    """Collect the garbage of the cache that the environment names, and publish what it freed.

    Returns:
        Counts by name, as in the artifact ``cache-maintenance``.
    """
    collected = TieredCache.from_settings().collect_garbage()
    counts: dict[str, Any] = collected.as_dict()
    get_run_logger().info("maintenance: %s", ", ".join(f"{name} {count}" for name, count in counts.items()))
    create_table_artifact(
        key="cache-maintenance",
        table=[{"what": name.replace("_", " "), "count": str(count)} for name, count in counts.items()],
        description="What cache maintenance has freed.",
    )
    return counts


if __name__ == "__main__":
    cache_maintenance()

"""Names of recordings in what people are shown: run names, logs, states."""

from cache_blocks import TieredCache


def shown_name(name: str) -> str:
    """Return the name, or what stands for it when the cache is told that everything is private."""
    privacy = TieredCache.from_settings().privacy
    return privacy.name(name) if privacy.everything and name else name


def shown_reason(reason: str) -> str:
    """Return why something failed; when everything is private, not in words that may quote names and texts."""
    return (
        "the reason is in the summary, which is not shown" if TieredCache.from_settings().privacy.everything else reason
    )


def is_private() -> bool:
    """Whether the cache is told that everything is private."""
    return TieredCache.from_settings().privacy.everything

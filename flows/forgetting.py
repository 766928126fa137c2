"""What the pipeline keeps of a recording beside the cache, for ``cache-blocks forget``."""

from tasks.search import remove_recording


def forget_recording(recording: str) -> bool:
    """Remove a recording from the search index; return whether it was there.

    Args:
        recording: Digest of the recording's bytes.
    """
    return remove_recording(recording)

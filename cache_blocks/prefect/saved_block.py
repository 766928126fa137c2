"""The saved block through which later processes load results; looked for once per process."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

if TYPE_CHECKING:
    from cache_blocks.settings import CacheSettings

logger = logging.getLogger("cache_blocks")

BLOCK_TYPE_SLUG: Final = "tiered-cache"
_lock = threading.Lock()
_ids: dict[str, UUID | None] = {}


def saved_block_id(settings: CacheSettings) -> UUID | None:
    """Return the id of the saved block of this name, or None when there is none or the API does not answer."""
    name = settings.block
    with _lock:
        if name not in _ids:
            _ids[name] = _find(name)
        return _ids[name]


def forget_saved_blocks() -> None:
    """Look again at next use, after a block has been saved."""
    with _lock:
        _ids.clear()


def _find(name: str) -> UUID | None:
    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(name, BLOCK_TYPE_SLUG, include_secrets=False)
    except ObjectNotFound:
        return None
    except Exception as error:  # noqa: BLE001 - whatever the API does, a task must not fail for it
        logger.warning("no saved block %s/%s: %s", BLOCK_TYPE_SLUG, name, type(error).__name__)
        return None
    return document.id

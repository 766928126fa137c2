"""The saved block through which later processes load results; looked for once per process."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from cache_blocks import forking
from cache_blocks.errors import ConfigurationError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import BlockDocument

    from cache_blocks.settings import CacheSettings

logger = logging.getLogger("cache_blocks")

BLOCK_TYPE_SLUG: Final = "tiered-cache"
_lock = forking.lock()
_ids: dict[tuple[str, str], UUID | None] = {}


def saved_block_id(settings: CacheSettings) -> UUID | None:
    """Return the id of the namespace's saved block, or None when there is none or the API does not answer."""
    wanted = settings.block, settings.namespace
    with _lock:
        if wanted not in _ids:
            _ids[wanted] = _find(*wanted)
        return _ids[wanted]


def check_owner(settings: CacheSettings) -> None:
    """Refuse to save a namespace's block over that of another one.

    Raises:
        ConfigurationError: The saved block of this name is of another namespace.
    """
    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(settings.block, BLOCK_TYPE_SLUG, include_secrets=False)
    except ObjectNotFound:
        return
    if namespace_of(document) not in (None, settings.namespace):
        name = f"{BLOCK_TYPE_SLUG}/{settings.block}"
        raise ConfigurationError(
            f"the saved block {name} is of namespace {namespace_of(document)!r}, and results of that one are loaded "
            f"through it; give this one another name with CACHE_BLOCKS_BLOCK, or run `prefect block delete {name}`"
        )


def forget_saved_blocks() -> None:
    """Look again at next use, after a block has been saved."""
    with _lock:
        _ids.clear()


def namespace_of(document: BlockDocument) -> str | None:
    """Return the namespace that a saved block names; None if it takes that of whoever loads it."""
    return document.data.get("namespace")


def _find(name: str, namespace: str) -> UUID | None:
    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(name, BLOCK_TYPE_SLUG, include_secrets=False)
    except ObjectNotFound:
        return None
    except Exception as error:  # noqa: BLE001 - whatever the API does, a task must not fail for it
        logger.warning("no saved block %s/%s: %s", BLOCK_TYPE_SLUG, name, type(error).__name__)
        return None
    if namespace_of(document) not in (None, namespace):  # what is loaded through it would be another one's
        logger.warning(
            "the saved block %s/%s is of namespace %s, not of %s; set CACHE_BLOCKS_BLOCK and run `cache-blocks init`",
            *(BLOCK_TYPE_SLUG, name, namespace_of(document), namespace),
        )
        return None
    return document.id

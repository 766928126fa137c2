"""A key ring that is kept in a Prefect Secret block."""

from __future__ import annotations

from typing import Any, cast

from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound

from cache_blocks.errors import ConfigurationError

BLOCK_TYPE_SLUG = "secret"


def ring_in_block(name: str) -> str:
    """Return the ring that the Secret block of this name holds.

    Raises:
        ConfigurationError: There is no such block.
        Exception: Prefect's API does not answer.
    """
    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(name, BLOCK_TYPE_SLUG, include_secrets=True)
    except ObjectNotFound:
        raise ConfigurationError(
            f"there is no Prefect Secret block {name!r}; make one with the ring that `cache-blocks keys new` prints"
        ) from None
    # What `load` does, which may be asynchronous.
    block = cast("Any", Secret)._from_block_document(document)  # noqa: SLF001
    return str(block.get())

"""The ready automations: a message when a tier goes down, when it is back, and when a run hits too little."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Final
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.events.actions import SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound

from cache_blocks.errors import ConfigurationError
from cache_blocks.prefect.emitting import HIT_RATE_LOW, PREFIX

_QUIET: Final = timedelta(minutes=10)


def save_automations(namespace: str, block: str) -> list[str]:
    """Create the automations of a namespace, or bring them up to date, and return their names.

    Args:
        namespace: Environment whose events they listen to.
        block: Saved notification block as ``TYPE_SLUG/NAME``, such as ``slack-webhook/alerts``.

    Raises:
        ConfigurationError: There is no such block.
    """
    names: list[str] = []
    with get_client(sync_client=True) as client:
        slug, _, name = block.partition("/")
        try:
            document = client.read_block_document_by_name(name, slug, include_secrets=False)
        except ObjectNotFound as error:
            raise ConfigurationError(
                f"there is no saved block {block!r}; save a notification block in the Prefect UI and give its name as "
                "TYPE/NAME, such as slack-webhook/alerts"
            ) from error
        for automation in _automations(namespace, document.id):
            for known in client.read_automations_by_name(automation.name):
                client.delete_automation(known.id)
            client.create_automation(automation)
            names.append(automation.name)
    return names


def _automations(namespace: str, block_id: UUID) -> Iterator[AutomationCore]:
    tier = "{{ event.resource.name }}"
    yield _automation(
        "tier down",
        namespace,
        {f"{PREFIX}.tier-down", f"{PREFIX}.tier-up"},
        block_id,
        subject=f"Cache tier {tier}: {{{{ event.event | replace('{PREFIX}.', '') }}}}",
        body=f"Namespace {namespace}, tier {tier}. {{{{ event.payload.reasons | join(', ') }}}} "
        "Flows go on without it; `cache-blocks doctor` says what to do.",
    )
    yield _automation(
        "hit rate low",
        namespace,
        {HIT_RATE_LOW},
        block_id,
        subject=f"Cache hits too little in {namespace}",
        body="{{ event.payload.hits }} of {{ event.payload.lookups }} lookups of the run hit; the cache report on its "
        "page says why the others missed.",
    )


def _automation(
    name: str, namespace: str, expect: set[str], block_id: UUID, *, subject: str, body: str
) -> AutomationCore:
    return AutomationCore(
        name=f"{PREFIX}: {name} ({namespace})",
        description="Made by `cache-blocks init --notify`.",
        enabled=True,
        trigger=EventTrigger(
            expect=expect,
            match={f"{PREFIX}.namespace": namespace},  # pyright: ignore[reportArgumentType] - it is validated into one
            for_each={"prefect.resource.id"},
            posture=Posture.Reactive,
            threshold=1,
            within=_QUIET,
        ),
        actions=[SendNotification(block_document_id=block_id, subject=subject, body=body)],
    )

"""Why a lookup missed, beyond what the tiers say.

What has changed since the same work was last cached, and when something was invalidated. It asks SQL, once per miss,
and only where a task's call is known; a SQL tier that is down leaves the plain reason.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.entry import Lookup, Outcome
from cache_blocks.errors import TierUnavailableError
from cache_blocks.manifests import Change, changes_between, main_input
from cache_blocks.plan import INVALIDATED_BY, NEVER_SEEN
from cache_blocks.schema import EntryRow, GenerationRow, table

if TYPE_CHECKING:
    from cache_blocks.calls import Call
    from cache_blocks.database import Database
    from cache_blocks.tiers.breaker import Breaker

CHANGED: Final = "changed: "
"""How the reason of a miss begins that has an earlier entry of the same work."""
_CANDIDATES: Final = 5
_TOLD: Final = 4

_entry, _generation = table(EntryRow), table(GenerationRow)


@dataclass(frozen=True, slots=True)
class Nearest:
    """The earlier entry of the same task and the same work that differs least from a call.

    Attributes:
        key: Its key.
        created_at: When it was computed, in seconds since the epoch.
        changes: What differs.
    """

    key: str
    created_at: float
    changes: tuple[Change, ...]

    @property
    def reason(self) -> str:
        """The changes in a line."""
        told = [str(change) for change in self.changes[:_TOLD]]
        more = len(self.changes) - len(told)
        return CHANGED + "; ".join([*told, *([f"and {more} more"] if more else [])])


class Explainer:
    """Finds reasons in SQL.

    Args:
        database: Connection.
        namespace: Environment.
        breaker: Breaker of SQL.
    """

    def __init__(self, database: Database, namespace: str, breaker: Breaker) -> None:
        self._database = database
        self._namespace = namespace
        self._breaker = breaker

    def explain(self, call: Call, subject: str, lookup: Lookup) -> Lookup:
        """Return a miss with the best reason there is; anything else as it is.

        Args:
            call: What was looked up.
            subject: What the work is about, for people, such as a file's name.
            lookup: What was found.
        """
        try:
            if lookup.outcome is Outcome.INVALIDATED:
                return replace(lookup, reason=self._breaker.call(self._dated, call.key, lookup.reason))
            if lookup.outcome is Outcome.MISS and lookup.reason == NEVER_SEEN and (manifest := call.manifest()):
                nearest = self._breaker.call(self.nearest, call.key, manifest, subject)
                return replace(lookup, reason=nearest.reason) if nearest else lookup
        except TierUnavailableError:  # the breaker has logged and recorded it
            return lookup
        return lookup

    def nearest(self, key: str, manifest: Mapping[str, Any], subject: str) -> Nearest | None:
        """Return the earlier entry that differs least; of several the newest.

        The same work is the same subject, or the same first argument.

        Args:
            key: Key of the call, which does not count itself.
            manifest: Manifest of the call.
            subject: What the work is about.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        conditions = [_entry.c.subject == subject] if subject else []
        if main := main_input(manifest):
            conditions.append(_entry.c.main_input == main)
        found: list[Nearest] = []
        with self._database.read() as connection:
            for condition in conditions:
                for row in connection.execute(self._candidates(key, str(manifest.get("task", "")), condition)):
                    changes = changes_between(row.manifest, manifest)
                    found.append(Nearest(row.key, row.created_at, changes))
        return min(found, key=lambda one: (len(one.changes), -one.created_at), default=None)

    def _candidates(self, key: str, task: str, condition: Any) -> Any:
        return (
            sa.select(_entry.c.key, _entry.c.created_at, _entry.c.manifest)
            .where(_entry.c.namespace == self._namespace, _entry.c.task == task, condition, _entry.c.key != key)
            .order_by(_entry.c.created_at.desc())
            .limit(_CANDIDATES)
        )

    def _dated(self, key: str, reason: str) -> str:
        """Return the reason of an invalidation with the time of it."""
        scope = reason.removeprefix(INVALIDATED_BY)
        statement = sa.select(_generation.c.raised_at).where(
            _generation.c.namespace == self._namespace,
            _generation.c.scope == (f"key:{key}" if scope == "key" else scope),
        )
        with self._database.read() as connection:
            raised = connection.execute(statement).scalar()
        return f"{reason} at {moment(raised)}" if raised else reason


def moment(at: float) -> str:
    """Return a time in UTC for people."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(at))

"""Flow runs and what the cache did for them, as each of their reports has it: the history of a flow.

A row a run, which stays when the run's events are aged out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.metrics import CacheMetrics
from cache_blocks.schema import RunRow, table

if TYPE_CHECKING:
    from cache_blocks.database import Database
    from cache_blocks.events import CacheEvent

SHOWN: Final = 20
"""How many runs of a flow a report shows, its own among them."""

_run = table(RunRow)


@dataclass(frozen=True, slots=True)
class Run:
    """What a flow run's events add up to.

    Attributes:
        flow_run_id: The run.
        flow: Name of its flow.
        at: Its first event, in seconds since the epoch.
        lookups: Number of lookups.
        hits: How many of them hit.
        seconds_saved: Seconds of computing that the hits have spared, less what their lookups cost.
        money_saved: What computing them again would have cost, in the currency of the settings.
        compute_seconds: What was computed took that long.
        money_spent: And cost that much.
    """

    flow_run_id: str
    flow: str = ""
    at: float = 0.0
    lookups: int = 0
    hits: int = 0
    seconds_saved: float = 0.0
    money_saved: float = 0.0
    compute_seconds: float = 0.0
    money_spent: float = 0.0

    @classmethod
    def from_events(cls, flow_run_id: str, events: Iterable[CacheEvent]) -> Run:
        """Return what the events of a run add up to."""
        events = list(events)
        whole = CacheMetrics.from_events(events).whole
        return cls(
            flow_run_id=flow_run_id,
            flow=next((event.origin.flow for event in events if event.origin.flow), ""),
            at=min((event.at for event in events), default=0.0),
            lookups=whole.total,
            hits=whole.hits,
            seconds_saved=whole.seconds_saved,
            money_saved=whole.money_saved,
            compute_seconds=whole.compute_seconds,
            money_spent=whole.money_spent,
        )

    @property
    def hit_rate(self) -> float:
        """Share of lookups that hit, 0 to 1; 0 when there were none."""
        return self.hits / self.lookups if self.lookups else 0.0


class Runs:
    """Flow runs in SQL.

    Args:
        database: Connection.
        namespace: Environment.
    """

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def remember(self, run: Run) -> None:
        """Keep what a run adds up to, in place of what was known of it; raises `TierUnavailableError`."""
        values: dict[str, Any] = asdict(run) | {"namespace": self._namespace, "flow": run.flow[:255]}
        statement = self._database.upsert(_run).values(values)
        changed = {name: statement.excluded[name] for name in values.keys() - {"namespace", "flow_run_id"}}
        statement = statement.on_conflict_do_update(index_elements=["namespace", "flow_run_id"], set_=changed)
        with self._database.begin() as connection:
            connection.execute(statement)

    def before(self, run: Run, limit: int = SHOWN - 1) -> list[Run]:
        """Return the last runs of the same flow that began earlier and looked something up, oldest first.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        columns = [column for column in _run.columns if column.name != "namespace"]
        mine = (_run.c.namespace == self._namespace) & (_run.c.flow == run.flow) & (_run.c.at <= run.at)
        earlier = mine & (_run.c.flow_run_id != run.flow_run_id) & (_run.c.lookups > 0)
        statement = sa.select(*columns).where(earlier).order_by(_run.c.at.desc(), _run.c.flow_run_id).limit(limit)
        with self._database.read() as connection:
            found = [Run(**row) for row in connection.execute(statement).mappings()]
        return found[::-1]

"""Flow runs and what the cache did for them, as each of their reports has it: the history of a flow.

A row a run, which stays when the run's events are aged out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa

from cache_blocks.event_log import IS_HIT
from cache_blocks.events import CacheEvent, Origin
from cache_blocks.schema import EventRow, RunRow, table
from cache_blocks.sub_runs import Summed

if TYPE_CHECKING:
    from cache_blocks.database import Database
    from cache_blocks.metrics import CacheMetrics

SHOWN: Final = 20
"""How many runs of a flow a report shows, its own among them."""

_run, _event = table(RunRow), table(EventRow)
_IDS: Final = 500
"""How many runs one statement asks for."""


@dataclass(frozen=True, slots=True)
class Run:
    """What the events of a flow run and its sub-runs add up to.

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
    def from_metrics(cls, flow_run_id: str, metrics: CacheMetrics, *, flow: str, at: float) -> Run:
        """Return the row of a run with these figures."""
        whole = metrics.whole
        return cls(
            flow_run_id=flow_run_id,
            flow=flow,
            at=at,
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

    def hits_of(self, flow_run_id: str) -> list[Summed]:
        """Return the hits of a run, added up: there may be hundreds of thousands, and nothing to tell of each.

        Those that this process has still to write are not among them; `EventLog.of_run` writes them first.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        with self._database.read() as connection:
            rows = connection.execute(self._summing([flow_run_id]).where(IS_HIT))
            return [_summed(row) for row in rows.mappings()]

    def summed(self, flow_run_ids: Sequence[str]) -> Mapping[str, Sequence[Summed]]:
        """Return the events of runs, added up, by run.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        found: defaultdict[str, list[Summed]] = defaultdict(list[Summed])
        with self._database.read() as connection:
            for start in range(0, len(flow_run_ids), _IDS):
                for row in connection.execute(self._summing(flow_run_ids[start : start + _IDS])).mappings():
                    found[row["flow_run_id"]].append(_summed(row))
        return found

    def _summing(self, flow_run_ids: Sequence[str]) -> sa.Select[Any]:
        alike = [_event.c[name] for name in _ALIKE]
        sums = (sa.func.sum(_event.c[name]).label(name) for name in _SUMS)
        mine = (_event.c.namespace == self._namespace) & _event.c.flow_run_id.in_(flow_run_ids)
        columns = (*alike, *sums, sa.func.min(_event.c.at).label("at"), sa.func.count().label("number"))
        return sa.select(*columns).where(mine).group_by(*alike).order_by(*alike)


_ALIKE: Final = ("flow_run_id", "flow", "task", "action", "kind", "outcome", "tier", "cause")
_SUMS: Final = ("stored_bytes", "seconds", "seconds_saved", "money", "money_saved")


def _summed(row: sa.RowMapping) -> Summed:
    event = CacheEvent(
        action=row["action"],
        kind=row["kind"],
        outcome=row["outcome"],
        tier=row["tier"],
        reason=row["cause"],
        stored_bytes=int(row["stored_bytes"]),
        seconds=float(row["seconds"]),
        seconds_saved=float(row["seconds_saved"]),
        money=float(row["money"]),
        money_saved=float(row["money_saved"]),
        origin=Origin(flow_run_id=row["flow_run_id"], flow=row["flow"], task=row["task"]),
        at=float(row["at"]),
    )
    return Summed(event, int(row["number"]))

"""What computing has cost so far: the record from which a plan expects what comes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import sqlalchemy as sa

from cache_blocks.schema import EntryRow, table

if TYPE_CHECKING:
    from cache_blocks.database import Database

_entry = table(EntryRow)
_NEWEST: Final = 500


@dataclass(frozen=True, slots=True)
class Computation:
    """One computation of the past.

    Attributes:
        seconds: How long it took.
        usage: What it consumed, such as ``{"audio_seconds": 12.5}``.
    """

    seconds: float
    usage: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What something is expected to take, from computations of the past.

    Attributes:
        median: The middle of what was seen; half took more.
        p90: What nine in ten stayed under.
        samples: How many were seen.
    """

    median: float
    p90: float
    samples: int


class History:
    """Computations of the past, in SQL.

    Args:
        database: Connection.
        namespace: Environment.
    """

    def __init__(self, database: Database, namespace: str) -> None:
        self._database = database
        self._namespace = namespace

    def computations(self, task: str, kind: str) -> list[Computation]:
        """Return the newest 500 of a task and kind whose entries are still there.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        statement = (
            sa.select(_entry.c.compute_seconds, _entry.c.usage)
            .where(_entry.c.namespace == self._namespace, _entry.c.task == task, _entry.c.kind == kind)
            .order_by(_entry.c.created_at.desc())
            .limit(_NEWEST)
        )
        with self._database.read() as connection:
            return [Computation(row.compute_seconds, row.usage) for row in connection.execute(statement)]


def estimate(values: Sequence[float]) -> Estimate | None:
    """Return what values of the past let expect; None when there are none."""
    if not values:
        return None
    if len(values) == 1:
        return Estimate(values[0], values[0], 1)
    return Estimate(statistics.median(values), statistics.quantiles(values, n=10, method="inclusive")[-1], len(values))

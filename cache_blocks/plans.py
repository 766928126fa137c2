"""Plans that were made, and how well a run was foreseen by the one that was made for it."""

from __future__ import annotations

import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, cast

import sqlalchemy as sa

from cache_blocks import events as actions
from cache_blocks.entry import Outcome
from cache_blocks.schema import PlanRow, table
from cache_blocks.sub_runs import Summed
from cache_blocks.wording import counted, escaped, seconds_in_words

if TYPE_CHECKING:
    from cache_blocks.database import Database
    from cache_blocks.events import CacheEvent
    from cache_blocks.private.privacy import Privacy

VALID_SECONDS: Final = 24 * 3600.0
"""An older plan was not made for this run."""
_CANDIDATES: Final = 20

_plan = table(PlanRow)


@dataclass(frozen=True, slots=True)
class SavedPlan:
    """A plan that was made.

    Attributes:
        made_at: When, in seconds since the epoch.
        parameters: Parameters of the flow that it was made for; those that are missing were left to their defaults.
        stages: What each stage was expected to do, as `StagePlan.as_dict` gives it.
    """

    made_at: float
    parameters: Mapping[str, Any]
    stages: Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Score:
    """One stage, foreseen and real.

    Attributes:
        task: Name of the task.
        hits: Hits that were foreseen at least, and at most.
        real_hits: Hits.
        seconds: Compute seconds that were foreseen, at the median, for the computations there really were; None
            without history.
        real_seconds: What they took.
    """

    task: str
    hits: tuple[int, int]
    real_hits: int
    seconds: float | None
    real_seconds: float

    @property
    def right(self) -> bool:
        """Whether the hits came as foreseen."""
        return self.hits[0] <= self.real_hits <= self.hits[1]


class PlanLog:
    """Plans of a namespace, in SQL.

    Args:
        database: Connection.
        namespace: Environment.
        privacy: Hides the parameters where everything is private.
    """

    def __init__(self, database: Database, namespace: str, privacy: Privacy) -> None:
        self._privacy = privacy
        self._database = database
        self._namespace = namespace

    def save(self, flow: str, parameters: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> None:
        """Keep a plan, and let go of those that no run will be compared with any more.

        Args:
            flow: Name of the flow.
            parameters: Parameters it was made for, as JSON-able data.
            stages: What each stage is expected to do.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        now = time.time()
        mine = _plan.c.namespace == self._namespace
        row = {
            "flow": flow,
            "made_at": now,
            "parameters": self._kept(parameters),
            "stages": [dict(one) for one in stages],
        }
        with self._database.begin() as connection:
            connection.execute(sa.delete(_plan).where(mine, _plan.c.made_at < now - VALID_SECONDS))
            connection.execute(sa.insert(_plan), [{"id": secrets.token_hex(16), "namespace": self._namespace, **row}])

    def made_for(self, flow: str, parameters: Mapping[str, Any], started: float) -> SavedPlan | None:
        """Return the newest plan that was made for a run: less than a day before, and by parameters that it has.

        Raises:
            TierUnavailableError: SQL does not answer.
        """
        statement = (
            sa.select(_plan.c.made_at, _plan.c.parameters, _plan.c.stages)
            .where(
                _plan.c.namespace == self._namespace,
                _plan.c.flow == flow,
                _plan.c.made_at.between(started - VALID_SECONDS, started),
            )
            .order_by(_plan.c.made_at.desc())
            .limit(_CANDIDATES)
        )
        with self._database.read() as connection:
            plans = [SavedPlan(*row) for row in connection.execute(statement)]
        return next((plan for plan in plans if _holds(plan.parameters, self._kept(parameters))), None)

    def _kept(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters as plans keep them: what they say, or where everything is private, names for that."""
        return (
            {name: self._hidden(value) for name, value in parameters.items()}
            if self._privacy.everything
            else {**parameters}
        )

    def _hidden(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._hidden(inner) for name, inner in cast("dict[str, Any]", value).items()}
        return self._privacy.name(repr(value), "parameter")


def scores(plan: SavedPlan, events: Sequence[CacheEvent], sums: Sequence[Summed] = ()) -> Iterator[Score]:
    """Compare a plan with what happened.

    Args:
        plan: The plan.
        events: Events of the run.
        sums: Further ones, of this run or of those that it has started.
    """
    hits: Counter[str] = Counter()
    computed: defaultdict[str, list[Summed]] = defaultdict(list[Summed])
    for summed in [*(Summed(event, 1) for event in events), *sums]:
        event = summed.event
        if event.action == actions.LOOKUP and event.outcome == Outcome.HIT:
            hits[event.origin.task] += summed.number
        elif event.action == actions.COMPUTED:
            computed[event.origin.task].append(summed)
    for stage in plan.stages:
        task = str(stage["task"])
        least = sum(cast("Mapping[str, int]", stage["hits"]).values())
        number = sum(summed.number for summed in computed[task])
        each = cast("Mapping[str, Any]", stage["seconds"] or {}).get("each", {}).get("median")
        yield Score(
            task=task,
            hits=(least, least + int(stage["unknown"])),
            real_hits=hits[task],
            seconds=None if each is None else each * number,
            real_seconds=sum(summed.event.seconds for summed in computed[task]),
        )


def score_section(plan: SavedPlan, events: Sequence[CacheEvent], sums: Sequence[Summed] = ()) -> str:
    """Return the markdown that sets a plan beside what happened; see `scores`."""
    scored = list(scores(plan, events, sums))
    right = sum(score.right for score in scored)
    made = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(plan.made_at))
    lines = [
        "## Foreseen and real",
        f"The plan of {made} was right about the hits of {right} of {counted(len(scored), 'stage')}.",
        "\n".join(
            [
                "| stage | hits foreseen | hits | computing foreseen | computing |",
                "| --- | ---: | ---: | ---: | ---: |",
                *(_row(score) for score in scored),
            ]
        ),
    ]
    return "\n\n".join(lines)


def _row(score: Score) -> str:
    least, most = score.hits
    foreseen = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    seconds = "no history" if score.seconds is None else seconds_in_words(score.seconds)
    cells = (escaped(score.task, 60), foreseen, f"{score.real_hits:,}", seconds, seconds_in_words(score.real_seconds))
    return f"| {' | '.join(cells)} |"


def _holds(planned: Mapping[str, Any], real: Mapping[str, Any]) -> bool:
    """Whether a run has the parameters of a plan; of models only what the plan names has to agree."""
    for name, value in planned.items():
        found = real.get(name)
        if isinstance(value, dict) and isinstance(found, dict):
            if not _holds(cast("dict[str, Any]", value), cast("dict[str, Any]", found)):
                return False
        elif found != value:
            return False
    return True

"""What a batch will cost before it is run: every stage is planned, nothing is computed, and no server is asked."""

from typing import Any

from pydantic import BaseModel, validate_call

from cache_blocks import TieredCache
from cache_blocks.prefect.planning import Planner
from cache_blocks.wording import counted
from flows.outputs import RecordingResult
from flows.reading import read_all
from flows.sources import find_recordings
from flows.stages import Recipe, run_stages
from tasks.audio import AudioOptions, ChunkOptions
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancerConfig
from tasks.preferences import Preferences, load_preferences

FLOW = "batch-transcription"


class BatchPlan(BaseModel):
    """What a batch would do.

    Attributes:
        source: Where the recordings are.
        recordings: How many can be read.
        unreadable: What would become of the others.
        stages: What each stage would do, as `cache_blocks.prefect.planning.StagePlan.as_dict` gives it.
    """

    source: str
    recordings: int
    unreadable: list[RecordingResult]
    stages: list[dict[str, Any]]

    def sentence(self) -> str:
        """Return the plan in a sentence."""
        least = sum(stage["compute"]["least"] for stage in self.stages)
        most = sum(stage["compute"]["most"] for stage in self.stages)
        computations = counted(least, "computation") if least == most else f"{least:,} to {most:,} computations"
        return f"{counted(self.recordings, 'recording')} in {self.source}: {computations}"

    def rows(self) -> list[dict[str, Any]]:
        """Return the stages as rows of a table."""
        return [
            {
                "stage": stage["task"],
                "items": stage["items"],
                "hits": sum(stage["hits"].values()),
                "misses": sum(stage["misses"].values()),
                "unknown": f"{stage['unknown']:,} until {stage['until']}" if stage["unknown"] else "",
                "expected seconds": _range(stage["seconds"]),
                "expected cost": _range(stage["money"]),
            }
            for stage in self.stages
        ]


@validate_call
def plan_batch_transcription(
    source: str,
    engine: EngineConfig = EngineConfig(),  # noqa: B008 - frozen
    enhancement: EnhancerConfig = EnhancerConfig(),  # noqa: B008 - frozen
    user: str = "",
    audio: AudioOptions = AudioOptions(),  # noqa: B008 - frozen
    chunks: ChunkOptions | None = None,
    storage_options: dict[str, Any] | None = None,
) -> BatchPlan:
    """Return what ``batch-transcription`` with these parameters would do, and keep it for the report of the run.

    Args:
        source: See the flow; so are the others.
        engine: Speech recognition.
        enhancement: What improves the text.
        user: Whose preferences hold.
        audio: How sound is normalised.
        chunks: How long recordings are cut.
        storage_options: Handed to fsspec for URLs.

    Raises:
        SourceError: There is no such source, or no recording in it.
        EngineError: There is no such speech model.
    """
    recordings = find_recordings(source, storage_options)
    readable, unreadable = read_all(recordings)
    recipe = Recipe(
        audio=audio,
        engine=engine.resolved(),
        chunks=chunks,
        enhancer=enhancement,
        preferences=load_preferences.fn(user) if user else Preferences(),
    )
    planner = Planner()
    for _ in run_stages(readable, recipe, planner.map):
        pass  # planned item by item
    plan = BatchPlan(
        source=source,
        recordings=len(readable),
        unreadable=list(unreadable.values()),
        stages=[stage.as_dict() for stage in planner.stages],
    )
    given = {
        "source": source,
        "engine": engine.model_dump(mode="json", exclude_unset=True),
        "enhancement": enhancement.model_dump(mode="json", exclude_unset=True),
        "user": user,
        "audio": audio.model_dump(mode="json", exclude_unset=True),
    }
    TieredCache.from_settings().parts.plans.save(FLOW, given, plan.stages)
    return plan


def _range(bounds: dict[str, Any] | None) -> str:
    if bounds is None:
        return "no history"
    least, most = bounds["least"]["median"], bounds["most"]["p90"]
    return f"{least:.3g}" if least == most else f"{least:.3g} to {most:.3g}"

"""Running the batch flow, in this process or in another one, and looking at what it did."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import jiwer
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

from cache_blocks import TieredCache
from flows.batch_transcription import BatchFailedError, BatchSummary, batch_transcription

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from prefect.client.schemas.objects import Artifact, State

    from cache_blocks.events import CacheEvent

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"
AUDIO, TEXT, BETTER = "audio-preprocessing", "transcript", "ai-enhancement"
"""The three stages, by the names of their kinds."""
REFERENCES = dict(line.split("\t") for line in (SAMPLES / "transcripts.tsv").read_text().splitlines()[1:])

_COMPARABLE = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.RemovePunctuation(),
        jiwer.SubstituteWords({"mr": "mister"}),  # as the references write it
        jiwer.SubstituteRegexes({"-": " "}),
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


@dataclass(frozen=True)
class Ran:
    """One run of the batch flow.

    Attributes:
        state: Name of its final state.
        message: What the state says.
        summary: What became of the recordings.
        flow_run_id: Of the run.
        lookups: Its lookups, as the cache's log has them.
        models_loaded: Speech models that its process had loaded in the end.
        modules: Modules of note that its process had loaded in the end.
    """

    state: str
    message: str
    summary: BatchSummary
    flow_run_id: str
    lookups: list[CacheEvent]
    models_loaded: int = 0
    modules: list[str] = field(default_factory=list[str])

    @property
    def hits(self) -> dict[str, int]:
        """Hits by kind."""
        return dict(Counter(lookup.kind for lookup in self.lookups if lookup.outcome == "hit"))

    @property
    def misses(self) -> dict[str, int]:
        """Misses by kind, whatever their reason."""
        return dict(Counter(lookup.kind for lookup in self.lookups if lookup.outcome != "hit"))

    @property
    def tiers(self) -> dict[str, dict[str, int]]:
        """Hits by kind and tier."""
        found: dict[str, Counter[str]] = {}
        for lookup in self.lookups:
            if lookup.outcome == "hit":
                found.setdefault(lookup.kind, Counter())[lookup.tier] += 1
        return {kind: dict(tiers) for kind, tiers in found.items()}

    @property
    def texts(self) -> dict[str, str]:
        """Enhanced texts by recording."""
        return {result.name: result.text for result in self.summary.results if result.status == "done"}

    @property
    def reasons(self) -> dict[str, str]:
        """Reasons by recording that failed."""
        return {result.name: result.reason for result in self.summary.failed}


def run_batch(source: Path | str, output: Path | str, **parameters: Any) -> Ran:
    """Run the flow in this process."""
    state = batch_transcription(str(source), str(output), return_state=True, **parameters)
    return _ran(state, summary_of(state))


def run_batch_elsewhere(source: Path | str, output: Path | str, environment: Mapping[str, str]) -> Ran:
    """Run the flow in a new process."""
    command = [sys.executable, "-m", "tests.pipeline.child", str(source), str(output)]
    done = subprocess.run(command, cwd=ROOT, env=dict(environment), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    summary = BatchSummary.model_validate(said.pop("summary"))
    return Ran(summary=summary, lookups=lookups_of(said["flow_run_id"]), **said)


def summary_of(state: State[Any]) -> BatchSummary:
    """The summary in a state of the flow, whether it is completed or failed."""
    data = state.result(raise_on_failure=False)
    if isinstance(data, BatchFailedError):
        return data.summary
    assert isinstance(data, BatchSummary), data
    return data


def _ran(state: State[Any], summary: BatchSummary) -> Ran:
    flow_run_id = str(state.state_details.flow_run_id)
    return Ran(state.name or "", state.message or "", summary, flow_run_id, lookups_of(flow_run_id))


def lookups_of(flow_run_id: str) -> list[CacheEvent]:
    """The lookups of a run, in this test's cache."""
    events = TieredCache.from_settings().parts.events.of_run(flow_run_id)
    return [event for event in events if event.action == "lookup"]


def artifacts_of(flow_run_id: str) -> dict[str, Artifact]:
    """The artifacts of a run by key, as the API has them."""
    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]))
    with get_client(sync_client=True) as client:
        return {artifact.key or "": artifact for artifact in client.read_artifacts(artifact_filter=wanted)}


def files_under(folder: Path) -> dict[str, bytes]:
    """Contents by relative name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def written_at(folder: Path) -> dict[str, tuple[int, int]]:
    """What shows that a file was written again, by relative name: its time in nanoseconds and its inode."""
    statuses = {path.relative_to(folder).as_posix(): path.stat() for path in folder.rglob("*") if path.is_file()}
    return {name: (status.st_mtime_ns, status.st_ino) for name, status in statuses.items()}


def word_error_rate(texts: Mapping[str, str], names: Iterable[str] = REFERENCES) -> float:
    """Share of wrong words over the samples, 0 to 1."""
    names = list(names)
    return jiwer.wer(
        [REFERENCES[name] for name in names],
        [texts[name] for name in names],
        reference_transform=_COMPARABLE,
        hypothesis_transform=_COMPARABLE,
    )


def lookup_seconds(lookups: Iterable[CacheEvent]) -> float:
    """What lookups took together."""
    return sum(lookup.seconds for lookup in lookups)


def compute_seconds(lookups: Iterable[CacheEvent], cache: TieredCache) -> float:
    """What computing took together that the results of these lookups came from, as is stored with them."""
    entries = [cache.lookup(lookup.key, tags=()).entry for lookup in lookups]
    return sum(entry.compute_seconds for entry in entries if entry is not None)

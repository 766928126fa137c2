"""The plan of a batch: what it says, that it does nothing, and that the run goes as planned."""

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from prefect.client.schemas.objects import State
from typer.testing import CliRunner

from cache_blocks import TieredCache
from cache_blocks.cli.app import app
from flows.batch_transcription import batch_transcription
from flows.planning import BatchPlan, plan_batch_transcription
from flows.sources import SourceError
from tasks.engines import EngineConfig
from tests.pipeline.batches import BETTER, ROOT, SAMPLES, TEXT, artifacts_of, run_batch
from tests.pipeline.conftest import FirstRun
from tests.pipeline.test_batch import samples_of
from tests.unit.media_samples import RECORDINGS, encoded, tone, wav

STAGES = ["normalise_audio", "transcribe", "enhance"]


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line finds a pipeline in the working directory."""
    monkeypatch.chdir(ROOT)


def plan_of(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["plan", "batch-transcription", *words, "--json"])
    assert done.exit_code == 0, done.output
    return cast("dict[str, Any]", json.loads(done.stdout))


def test_before_the_first_run_the_later_stages_are_unknown(cache: TieredCache) -> None:
    plan = plan_of("--source", str(SAMPLES))

    assert [stage["task"] for stage in plan["stages"]] == STAGES
    first, second, third = plan["stages"]
    assert (first["misses"], first["unknown"]) == ({"never seen": 5}, 0)
    assert (second["unknown"], second["until"]) == (5, "normalise_audio")
    assert (third["unknown"], third["until"]) == (5, "transcribe")
    assert [stage["seconds"] for stage in plan["stages"]] == [None] * 3
    assert cache.metrics.total == 0
    assert cache.stats().entries == 0


def test_after_a_run_everything_is_planned_as_a_hit_and_is_one(warm: FirstRun, tmp_path: Path) -> None:
    del warm
    plan = plan_of("--source", str(SAMPLES))

    assert [sum(stage["hits"].values()) for stage in plan["stages"]] == [5, 5, 5]
    assert all(stage["compute"] == {"least": 0, "most": 0} for stage in plan["stages"])
    assert sum(run_batch(SAMPLES, tmp_path / "output").hits.values()) == 15


def test_a_mixed_batch_goes_as_planned_and_says_so(warm: FirstRun, tmp_path: Path) -> None:
    """Three known recordings, one of them in another container, and one that is new."""
    del warm
    source = tmp_path / "source"
    source.mkdir()
    for path in RECORDINGS[:3]:
        if path.suffix != ".wav":
            shutil.copy(path, source)
        else:
            (source / "austen.flac").write_bytes(encoded(samples_of(path), "flac", "flac"))
    (source / "tone.wav").write_bytes(wav(tone(1.0)))

    plan = plan_of("--source", str(source))
    ran = run_batch(source, tmp_path / "output")

    normalise, transcribe, enhance = plan["stages"]
    assert sum(normalise["hits"].values()) == 2
    assert normalise["compute"] == {"least": 2, "most": 2}
    assert transcribe["unknown"] == enhance["unknown"] == 2
    assert normalise["seconds"]["samples"] == 5
    hits = {kind: ran.hits.get(kind, 0) for kind in (TEXT, BETTER)}
    for stage, kind in ((transcribe, TEXT), (enhance, BETTER)):
        known = sum(stage["hits"].values())
        assert known <= hits[kind] <= known + stage["unknown"]


def test_a_changed_model_is_named_before_it_costs_anything(warm: FirstRun) -> None:
    del warm
    plan = plan_batch_transcription(source=str(SAMPLES), engine=EngineConfig(beam_size=3))

    assert plan.stages[1]["misses"] == {"changed: engine.beam_size: 5 -> 3": 5}
    assert plan.stages[1]["compute"] == {"least": 5, "most": 5}
    assert plan.stages[1]["seconds"]["least"]["median"] > 0


def test_the_flow_plans_too_and_shows_it(warm: FirstRun, tmp_path: Path) -> None:
    del warm
    output = tmp_path / "output"
    state = cast("State[Any]", batch_transcription(str(SAMPLES), str(output), plan=True, return_state=True))

    plan = state.result()  # pyright: ignore[reportCallIssue]
    assert isinstance(plan, BatchPlan)
    assert plan.sentence().endswith("0 computations")
    assert not output.exists()
    rows = json.loads(str(artifacts_of(str(state.state_details.flow_run_id))["cache-plan"].data))
    assert [(row["stage"], row["hits"]) for row in rows] == [(name, 5) for name in STAGES]


def test_what_cannot_be_read_is_in_the_plan(tmp_path: Path) -> None:
    (tmp_path / "gone.wav").symlink_to(tmp_path / "nowhere")
    (tmp_path / "tone.wav").write_bytes(wav(tone(1.0)))
    plan = plan_of("--source", str(tmp_path))
    assert [one["name"] for one in plan["unreadable"]] == ["gone.wav"]
    assert "no such file" in plan["unreadable"][0]["reason"]


def test_for_people_a_plan_is_a_table(warm: FirstRun) -> None:
    del warm
    done = CliRunner().invoke(app, ["plan", "batch-transcription", "--source", str(SAMPLES)])
    assert done.exit_code == 0
    assert "5 recordings in" in done.stdout
    assert all(stage in done.stdout for stage in STAGES)


@pytest.mark.parametrize(
    "words, says",
    [
        (["plan", "no-such-flow"], "has no function plan_no_such_flow"),
        (["plan", "batch-transcription", "--param", "engine"], "is not NAME=VALUE"),
        (["explain"], "give a KEY or --run ID"),
        (["explain", "transcript:none"], "no lookup of 'transcript:none' is on record"),
        (["explain", "--run", "none"], "no lookup of flow run 'none' is on record"),
    ],
)
def test_wrong_use_names_the_way_out(words: list[str], says: str) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code in (1, 2)
    assert says in " ".join(done.output.replace("│", " ").split())


def test_a_source_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is no"):
        plan_batch_transcription(source=str(tmp_path / "nowhere"))


def test_a_run_explains_its_misses(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "tone.wav").write_bytes(wav(tone(1.0)))
    ran = run_batch(source, tmp_path / "output")

    done = CliRunner().invoke(app, ["explain", "--run", ran.flow_run_id, "--json"])
    misses = json.loads(done.stdout)

    assert [(miss["task"], miss["subject"], miss["reason"]) for miss in misses] == [
        (stage, "tone.wav", "never seen") for stage in STAGES
    ]
    shown = CliRunner().invoke(app, ["explain", misses[0]["key"]])
    assert "never seen" in shown.stdout
    assert "1 lookup, 1 missed" in shown.stdout


def test_the_report_of_a_run_scores_the_plan_that_was_made_for_it(warm: FirstRun, tmp_path: Path) -> None:
    del warm
    plan_of("--source", str(SAMPLES))
    ran = run_batch(SAMPLES, tmp_path / "output", engine=EngineConfig(), concurrency=1)

    report = str(artifacts_of(ran.flow_run_id)["cache-report"].data)

    assert "## Foreseen and real" in report
    assert "was right about the hits of 3 of 3 stages" in report
    assert "| transcribe | 5 | 5 |" in report

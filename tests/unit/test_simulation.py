"""The simulated night: every key is asked for once, what comes out is counted right, and nothing wrong goes unseen."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from pydantic import SecretStr, ValidationError

from benchmarks.measuring import Bench
from benchmarks.simulation.asking import Answers, Asker
from benchmarks.simulation.crew import Crew, Part, ProcessFailedError
from benchmarks.simulation.night import AUDIO, NOWHERE, OBJECT_STORE, REDIS, SQL, TRANSCRIPTS, Night, Shape
from benchmarks.simulation.planting import plant
from benchmarks.simulation.results import FILE, Latency, Simulation
from benchmarks.simulation.running import simulate
from benchmarks.simulation.work import Work
from cache_blocks import CacheSettings, TieredCache

SMALL = Shape(
    keys=400, processes=2, page=50, single=0.2, again=0.25, places=(0.8, 0.1, 0.02, 0.08), sizes=(500, 1000, 2000)
)
NOW = 1_800_000_000.0


# --- what is dealt out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("keys, processes, page", [(1000, 8, 50), (997, 3, 500), (5, 8, 2)])
def test_all_processes_together_ask_for_every_key_once(keys: int, processes: int, page: int) -> None:
    night = Night(Shape(keys=keys, processes=processes, page=page))

    asked = [number for process in range(processes) for step in night.steps(process) for number in step.numbers]

    assert sorted(asked) == list(range(keys))


def test_shares_hold_to_the_key() -> None:
    night = Night(Shape(keys=10_000))

    places = Counter(night.place(number) for number in range(10_000))
    assert places == {REDIS: 8650, SQL: 1000, OBJECT_STORE: 50, NOWHERE: 300}
    assert int(np.count_nonzero(night.singles)) == 200
    assert int(np.count_nonzero(night.agains)) == 500


def test_only_transcripts_are_in_the_object_store_alone() -> None:
    night = Night(Shape(keys=5_000))

    assert {night.kind(number) for number in range(5_000) if night.place(number) == OBJECT_STORE} == {TRANSCRIPTS}


def test_pages_are_of_one_kind_and_no_longer_than_they_may_be() -> None:
    night = Night(SMALL)

    steps = night.steps(0)
    assert max(len(step.numbers) for step in steps) <= SMALL.page
    assert all({night.kind(number) for number in step.numbers} == {step.kind} for step in steps)
    assert all(len(step.numbers) == 1 for step in steps if step.single)


def test_the_seed_decides_everything() -> None:
    one, same, other = (Night(SMALL.model_copy(update={"seed": seed})) for seed in (1, 1, 2))

    assert one.steps(0) == same.steps(0) != other.steps(0)
    works = [Work(night, "n", NOW) for night in (one, same, other)]
    assert works[0].key(7) == works[1].key(7) != works[2].key(7)


def test_shares_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValidationError, match="places must be 4 shares that add up to 1"):
        Shape(places=(0.5, 0.5, 0.5, 0.0))


# --- asking -----------------------------------------------------------------------------------------------


@pytest.fixture
def cache(cache_home: Path, redis_url: str) -> TieredCache:
    """A cache over Redis, SQLite and a folder."""
    return TieredCache(CacheSettings(home=cache_home, redis_url=SecretStr(redis_url), redis_timeout_seconds=10))


def asked(cache: TieredCache, night: Night, tmp_path: Path) -> Answers:
    """What a single process that asks for the whole night is answered."""
    work = Work(night, cache.settings.namespace, NOW)
    answers = Asker(cache, night, work, tmp_path, {}).ask(night.steps(0), lambda _: None)
    cache.close()
    return answers


def planted(cache: TieredCache, night: Night) -> Work:
    """What earlier nights have left."""
    work = Work(night, cache.settings.namespace, NOW)
    plant(cache, night, work, night.of_process(0), Path("/"), lambda _: None)
    return work


@pytest.fixture
def night() -> Night:
    """A small night for one process."""
    return Night(SMALL.model_copy(update={"keys": 200, "processes": 1}))


def test_what_was_planted_is_found_where_it_was_and_the_rest_is_computed(
    cache: TieredCache, night: Night, tmp_path: Path
) -> None:
    planted(cache, night)

    answers = asked(cache, night, tmp_path)

    assert dict(answers.problems) == {}
    assert answers.found == {"redis": 160, "sql": 20, "object_store": 4, "miss": 16}
    assert answers.events == {"lookup hit": 184, "lookup miss": 16, "computed": 16}
    assert sum(len(times) for name, times in answers.seconds.items() if name.startswith("store")) == 16


def test_an_answer_from_another_tier_is_a_problem(cache: TieredCache, night: Night, tmp_path: Path) -> None:
    work = planted(cache, night)
    evicted = next(number for number in range(200) if night.place(number) == REDIS)
    cache.parts.chain.tier("redis").delete([work.key(evicted)])

    answers = asked(cache, night, tmp_path)

    assert answers.problems == {"an answer from elsewhere: sql, which redis was to give": 1}


def test_a_wrong_value_is_a_problem(cache: TieredCache, night: Night, tmp_path: Path) -> None:
    work = planted(cache, night)
    number = next(number for number in range(200) if night.place(number) == REDIS and night.kind(number) != AUDIO)
    wrong = work.value(number)
    wrong = wrong.model_copy(update={"text": "Lies."}) if night.kind(number) == TRANSCRIPTS else {**wrong, "text": ""}
    call = work.call(number)
    cache.put(call.key, wrong, kind=call.kind, tags=call.tags, annotation=call.annotation)

    answers = asked(cache, night, tmp_path)

    assert answers.problems["a wrong value was served"] == 1


def test_what_was_lost_is_a_problem(cache: TieredCache, night: Night, tmp_path: Path) -> None:
    work = planted(cache, night)
    lost = [number for number in range(200) if night.place(number) == SQL][:3]
    cache.parts.chain.delete([work.key(number) for number in lost])

    answers = asked(cache, night, tmp_path)

    assert answers.problems == {"a miss where an entry was stored": 3}


def test_an_error_is_a_problem_and_the_others_are_still_asked_for(
    cache: TieredCache, night: Night, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted(cache, night)

    def fail(*_: object) -> None:
        raise OSError("no luck")

    monkeypatch.setattr(cache, "find_call", fail)
    answers = asked(cache, night, tmp_path)

    assert answers.problems["OSError: no luck"] > 0
    assert sorted(answers.numbers) == list(range(200))


def test_many_problems_of_a_sort_are_shown_by_a_few() -> None:
    answers = Answers()
    for number in range(100):
        answers.problem(f"ValueError: {number}")

    assert len(answers.problems) == 6
    assert answers.problems["ValueError: and others"] == 95


# --- the whole --------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)  # servers and processes to start, on a machine that may be busy
def test_a_small_night_goes_through_the_real_tiers_with_nothing_lost() -> None:
    told: Counter[str] = Counter()
    with Bench(tell=lambda _: None) as bench:
        done = simulate(bench, SMALL, lambda phase, keys: told.update({phase: keys}), note="A test")

    assert done.problems == {}
    assert done.found == {"redis": 320, "sql": 40, "object_store": 8, "miss": 32}
    assert done.found_again == {"redis": told["again"]}
    assert told["plant"] == told["ask"] == done.phases["ask"].keys == SMALL.keys
    lookups = {name: count for name, count in done.events.items() if not name.startswith(("requests", "transfer"))}
    assert lookups == {"lookup hit": 368, "lookup miss": 32, "computed": 32}
    assert sum(one.count for name, one in done.latency.items() if name.startswith("store")) == 32
    assert sum(one.count for name, one in done.latency.items() if name.startswith("miss of")) == 32
    assert done.sizes.tables["cache_blocks_entry"].rows == SMALL.keys
    assert set(done.memory) == {"redis", "postgres", "s3", "worker", "workers"}
    assert min(done.memory.values()) > 0
    # Each miss of sound has put one blob, each of a transcript one replica.
    night = Night(SMALL)
    audio = [number for number in range(SMALL.keys) if night.kind(number) == AUDIO]
    assert done.sizes.objects["blobs"] == len(audio)
    assert Simulation.model_validate_json(done.model_dump_json()) == done


def test_a_process_that_fails_is_named(tmp_path: Path) -> None:
    settings = CacheSettings(home=tmp_path / "home")
    told = r"process 0 failed in phase 'dance':[\s\S]*no phase 'dance'"
    with (
        Crew([Part(0, SMALL, settings, tmp_path, tmp_path, NOW)]) as crew,
        pytest.raises(ProcessFailedError, match=told),
    ):
        crew.do("dance")


def test_a_process_that_dies_is_named(tmp_path: Path) -> None:
    settings = CacheSettings(home=tmp_path / "home")
    with Crew([Part(0, SMALL, settings, tmp_path, tmp_path, NOW)]) as crew:
        [process] = crew.processes
        process.kill()
        process.wait()
        with pytest.raises((ProcessFailedError, BrokenPipeError)):
            crew.do("plant")


# --- results ----------------------------------------------------------------------------------------------


def test_percentiles_are_those_of_the_times() -> None:
    latency = Latency.of([number / 1000 for number in range(1, 1002)])

    assert (latency.count, latency.p50, latency.p95, latency.p99, latency.p999, latency.max) == (
        1001,
        501.0,
        951.0,
        991.0,
        1000.0,
        1001.0,
    )


def test_the_results_in_the_repository_have_their_form_and_name_no_path() -> None:
    done = Simulation.load(FILE)

    text = FILE.read_text()
    assert json.loads(text) == json.loads(done.model_dump_json())
    assert not re.search(r'"[^"]*(/tmp/|/home/|/root/|/Users/|127\.0\.0\.1)', text)
    assert done.problems == {}
    assert sum(done.found.values()) == done.shape.keys

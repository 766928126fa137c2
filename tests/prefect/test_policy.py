"""`TieredCachePolicy` and `tiered_cache_key_fn` on plain Prefect tasks."""

import asyncio
from typing import Any

import cloudpickle
import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS, RUN_ID
from prefect.transactions import transaction

from cache_blocks import TRANSCRIPT, CacheKind, CacheSettings, TieredCache, TieredCachePolicy, tiered_cache_key_fn
from cache_blocks import events as actions
from cache_blocks.errors import ConfigurationError
from tests.prefect.observed import BYPASSED, HIT, MISS, Calls, errors_of, outcomes, recorded, run_async

BOTH_FORMS = pytest.mark.parametrize(
    "options",
    [{"cache_policy": TieredCachePolicy(TRANSCRIPT)}, {"cache_key_fn": tiered_cache_key_fn(TRANSCRIPT)}],
    ids=["cache_policy", "cache_key_fn"],
)


@BOTH_FORMS
def test_a_plain_task_is_cached(options: dict[str, Any], cache: TieredCache) -> None:
    calls = Calls()

    @task(**options)
    def length(text: str) -> dict[str, int]:
        calls.note()
        return {text: len(text)}

    states: list[Any] = [length("abc", return_state=True) for _ in range(2)]

    assert [(state.name, state.result()) for state in states] == [("Completed", {"abc": 3}), ("Cached", {"abc": 3})]
    assert calls.count == 1
    assert outcomes(cache) == [MISS, HIT]


@BOTH_FORMS
def test_a_plain_async_task_is_cached(options: dict[str, Any]) -> None:
    calls = Calls()

    @task(**options)
    async def length(text: str) -> int:
        await asyncio.sleep(0)
        calls.note()
        return len(text)

    async def both() -> list[int]:
        return [await length("abc"), await length("abc")]

    assert run_async(both()) == [3, 3]
    assert calls.count == 1


@BOTH_FORMS
def test_a_refresh_overwrites(options: dict[str, Any], cache: TieredCache) -> None:
    calls = Calls()

    @task(**options)
    def number(text: str) -> int:
        del text
        return calls.note()

    assert [number("x"), number.with_options(refresh_cache=True)("x"), number("x")] == [1, 2, 2]
    assert outcomes(cache) == [MISS, BYPASSED, HIT]


def test_both_forms_share_a_key() -> None:
    calls = Calls()

    def length(text: str) -> int:
        calls.note()
        return len(text)

    assert task(cache_policy=TieredCachePolicy(TRANSCRIPT))(length)("abc") == 3
    assert task(cache_key_fn=tiered_cache_key_fn(TRANSCRIPT))(length)("abc") == 3
    assert calls.count == 1


def test_only_values_that_come_back_equal_are_kept(cache: TieredCache, caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT))
    def pair(text: str):  # noqa: ANN202
        calls.note()
        return text, len(text)

    assert [pair("abc"), pair("abc")] == [("abc", 3), ("abc", 3)]
    assert calls.count == 2
    assert any("would come back as list" in line and "annotate" in line for line in errors_of(caplog))
    assert len(recorded(cache, actions.UNSTORED)) == 2


def test_an_annotation_makes_the_same_value_come_back_equal() -> None:
    @task(cache_policy=TieredCachePolicy(TRANSCRIPT))
    def pair(text: str) -> tuple[str, int]:
        return text, len(text)

    assert pair("abc") == pair("abc") == ("abc", 3)
    assert pair("abc", return_state=True).name == "Cached"


def test_a_failing_task_stores_nothing() -> None:
    calls = Calls()

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT))
    def fails(text: str) -> int:
        calls.note()
        raise ValueError(text)

    for _ in range(2):
        with pytest.raises(ValueError, match="abc"):
            fails("abc")
    assert calls.count == 2


def test_a_result_is_stored_as_it_was_returned_though_the_transaction_ends_later(cache: TieredCache) -> None:
    @task(cache_policy=TieredCachePolicy(TRANSCRIPT))
    def letters(text: str) -> list[str]:
        return list(text)

    with transaction():
        mine = letters("abc")
        mine.append("changed")

    assert letters("abc") == ["a", "b", "c"]
    assert outcomes(cache) == [MISS, HIT]


def test_a_rolled_back_transaction_stores_nothing() -> None:
    calls = Calls()

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT))
    def number(text: str) -> int:
        del text
        return calls.note()

    def roll_back() -> None:
        with transaction():
            number("x")
            raise ValueError("roll back")

    with pytest.raises(ValueError, match="roll back"):
        roll_back()
    assert number("x") == 2


# Adding and leaving out


def test_another_policy_that_is_added_becomes_a_part_of_the_key(cache: TieredCache) -> None:
    calls = Calls()

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT, cache_ignore=("text",)) + INPUTS)
    def length(text: str) -> int:
        calls.note()
        return len(text)

    assert [length("abc"), length("abc"), length("abcd")] == [3, 3, 4]
    assert calls.count == 2
    assert all(event.key.startswith("transcript:") for event in recorded(cache, actions.LOOKUP))


def test_a_run_id_that_is_added_keeps_runs_apart() -> None:
    calls = Calls()

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT) + RUN_ID)
    def length(text: str) -> int:
        calls.note()
        return len(text)

    @flow
    def twice() -> list[int]:
        return [length("abc"), length("abc")]

    assert twice() == twice() == [3, 3]
    assert calls.count == 2


def test_a_parameter_is_left_out_by_subtraction_of_all_parts() -> None:
    calls = Calls()

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT) + INPUTS - "name")
    def length(text: str, name: str) -> int:
        del name
        calls.note()
        return len(text)

    assert [length("abc", "a"), length("abc", "b"), length("abcd", "a")] == [3, 3, 4]
    assert calls.count == 2


def test_being_added_to_another_policy_is_refused_in_the_log(
    cache: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    calls = Calls()

    @task(cache_policy=INPUTS + TieredCachePolicy(TRANSCRIPT))
    def length(text: str) -> int:
        calls.note()
        return len(text)

    assert [length("abc"), length("abc")] == [3, 3]
    assert calls.count == 2
    assert "write TieredCachePolicy(…) + other" in caplog.text
    assert outcomes(cache) == []


def test_what_is_no_kind_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a kind is needed"):
        TieredCachePolicy("transcript")  # pyright: ignore[reportArgumentType]


def test_policies_of_different_kinds_are_different() -> None:
    kind = CacheKind("other", ttl=TRANSCRIPT.ttl)

    assert TieredCachePolicy(TRANSCRIPT) == TieredCachePolicy(TRANSCRIPT)
    assert TieredCachePolicy(TRANSCRIPT) != TieredCachePolicy(kind)
    assert TieredCachePolicy(TRANSCRIPT) != TieredCachePolicy(TRANSCRIPT) - "name"


# Keys and travel


@task(cache_policy=TieredCachePolicy(TRANSCRIPT))
def size_of(text: str) -> int:
    return len(text)


def test_the_key_depends_on_neither_flow_nor_run(cache: TieredCache) -> None:
    @flow
    def one(parameter: int) -> int:
        return size_of("abc") + parameter

    @flow
    def other() -> int:
        return size_of.submit(text="abc").result()

    assert [one(1), one(2), other(), size_of("abc")] == [4, 5, 3, 3]
    assert len({event.key for event in recorded(cache, actions.LOOKUP)}) == 1
    assert outcomes(cache) == [MISS, HIT, HIT, HIT]


def test_a_policy_may_have_a_cache_of_its_own(cache: TieredCache, tmp_path: Any) -> None:
    own = TieredCache(CacheSettings(home=tmp_path / "own"))

    @task(cache_policy=TieredCachePolicy(TRANSCRIPT, cache=own))
    def length(text: str) -> int:
        return len(text)

    assert [length("abc"), length("abc")] == [3, 3]
    assert outcomes(own) == [MISS, HIT]
    assert outcomes(cache) == []
    own.close()


def test_a_policy_survives_pickling() -> None:
    policy = TieredCachePolicy(
        TRANSCRIPT, cache_version="1", cache_ignore=("a",), cache_tags=("t", lambda arguments: arguments["text"])
    )

    copied = cloudpickle.loads(cloudpickle.dumps(policy + INPUTS))

    assert (copied.kind, copied.cache_version, copied.cache_ignore) == (TRANSCRIPT, "1", ("a",))
    assert copied.cache_tags[1]({"text": "x"}) == "x"
    assert copied.others == (INPUTS,)


def test_a_pickled_task_finds_what_the_original_has_stored(cache: TieredCache) -> None:
    copied = cloudpickle.loads(cloudpickle.dumps(size_of))

    assert [size_of("abc"), copied("abc")] == [3, 3]
    assert outcomes(cache) == [MISS, HIT]


def test_a_pickled_policy_takes_its_cache_along(tmp_path: Any) -> None:
    own = TieredCache(CacheSettings(home=tmp_path / "own"))

    copied = cloudpickle.loads(cloudpickle.dumps(TieredCachePolicy(TRANSCRIPT, cache=own)))

    assert copied.cache.settings.home == tmp_path / "own"
    own.close()

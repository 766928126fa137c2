"""A cached task is a Prefect task: called, submitted, mapped, retried, configured; and a hit is Prefect's own."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, task
from prefect.cache_policies import INPUTS
from prefect.client.schemas.objects import State
from prefect.settings import PREFECT_TASKS_DISABLE_CACHING, PREFECT_TASKS_REFRESH_CACHE, temporary_settings
from prefect.tasks import Task

from cache_blocks import (
    AI_ENHANCEMENT,
    TRANSCRIPT,
    CacheKind,
    TieredCache,
    cached_task,
    record_usage,
    tiered_cache_key_fn,
)
from cache_blocks.errors import ConfigurationError, UnhashableArgumentError, UnsupportedValueError
from tests.prefect.observed import BYPASSED, HIT, MISS, Calls, errors_of, lines_of, outcomes, recorded, run_async

Twice = tuple[State[Any], State[Any]]


def twice(cached: Task[..., Any], *args: Any, **kwargs: Any) -> Twice:
    """The states of two equal calls."""
    return cached(*args, return_state=True, **kwargs), cached(*args, return_state=True, **kwargs)


class Opaque:
    """Neither an argument nor a result that a cache could know."""


class SpeechError(Exception):
    """The error of a task."""


# Ways of calling


def test_the_second_equal_call_is_a_hit_in_state_cached(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def length(text: str) -> int:
        calls.note()
        return len(text)

    computed, cached = twice(length, "four")

    assert (computed.name, cached.name) == ("Completed", "Cached")
    assert (computed.result(), cached.result()) == (4, 4)
    assert calls.count == 1
    assert outcomes(cache) == [MISS, HIT]
    assert length("fiver") == 5


def test_submit_and_map_find_what_a_direct_call_has_stored() -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def length(text: str) -> int:
        calls.note()
        return len(text)

    @flow
    def three_ways() -> list[Any]:
        return [length("one"), length.submit("one").result(), *length.map(["one", "three", "one"]).result()]

    assert three_ways() == [3, 3, 3, 5, 3]
    assert calls.count == 2


def test_async_tasks_are_cached_in_the_same_ways(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    async def length(text: str) -> int:
        calls.note()
        await asyncio.sleep(0)
        return len(text)

    @flow
    async def three_ways() -> list[Any]:
        one, mapped = await length("one"), length.map(["one", "three", "one"])
        return [one, length.submit("one").result(), *mapped.result()]

    assert run_async(three_ways()) == [3, 3, 3, 5, 3]
    assert calls.count == 2
    assert outcomes(cache).count(HIT) == 3


def test_an_async_hit_is_in_state_cached() -> None:
    @cached_task(kind=TRANSCRIPT)
    async def length(text: str) -> int:
        await asyncio.sleep(0)
        return len(text)

    task: Any = length

    async def states() -> list[str]:
        found: list[Any] = [await task("one", return_state=True) for _ in range(2)]
        return [state.name for state in found]

    assert run_async(states()) == ["Completed", "Cached"]


def test_plain_calls_of_the_function_are_plain(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def length(text: str) -> int:
        calls.note()
        return len(text)

    assert [length.fn("one"), length.fn("one")] == [3, 3]
    assert calls.count == 2
    assert outcomes(cache) == []


def test_the_task_function_may_call_itself_plainly() -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def factorial(number: int) -> int:
        calls.note()
        return 1 if number < 2 else number * factorial.fn(number - 1)

    assert [factorial(4), factorial(4)] == [24, 24]
    assert calls.count == 4


def test_a_decorated_function_keeps_its_name_doc_and_signature() -> None:
    @cached_task(kind=TRANSCRIPT, tags={"speech"}, task_run_name="{text}")
    def length(text: str) -> int:
        """Count letters."""
        return len(text)

    assert (length.name, length.description, length.tags) == ("length", "Count letters.", {"speech"})
    assert length("abc", return_state=True).state_details.task_run_id is not None


class Speaker:
    """Has a task as a method."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        self.calls = 0

    @cached_task(kind=TRANSCRIPT, cache_ignore=("self",))
    def greet(self, name: str) -> str:
        self.calls += 1
        return f"{self.greeting} {name}"


def test_a_method_is_cached_when_its_object_is_left_out_of_the_key() -> None:
    speaker = Speaker("Hello")
    greet: Any = speaker.greet

    assert [greet("Ada"), greet("Ada"), greet("Bob")] == ["Hello Ada", "Hello Ada", "Hello Bob"]
    assert speaker.calls == 2


# Failing and trying again


def test_a_failing_task_raises_its_own_exception_and_caches_nothing() -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def fails(text: str) -> str:
        calls.note()
        raise SpeechError(text)

    for _ in range(2):
        with pytest.raises(SpeechError, match="mumbling"):
            fails("mumbling")
    assert calls.count == 2


def test_a_failing_async_task_raises_its_own_exception_and_caches_nothing() -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    async def fails(text: str) -> str:
        await asyncio.sleep(0)
        calls.note()
        raise SpeechError(text)

    for _ in range(2):
        with pytest.raises(SpeechError, match="mumbling"):
            run_async(fails("mumbling"))
    assert calls.count == 2


def test_a_retry_computes_again_and_its_result_is_what_is_cached(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT, retries=2)
    def flaky(text: str) -> int:
        if calls.note() == 1:
            raise SpeechError(text)
        return calls.count

    first, second = twice(flaky, "x")

    assert (first.result(), second.result()) == (2, 2)
    assert second.name == "Cached"
    assert outcomes(cache) == [MISS, MISS, HIT]


def test_a_timeout_ends_the_task_and_stores_nothing() -> None:
    @cached_task(kind=TRANSCRIPT, timeout_seconds=0.1, cache_ignore=("patience",))
    async def slow(text: str, patience: asyncio.Event) -> str:
        await patience.wait()
        return text

    async def run() -> list[State[Any]]:
        patience = asyncio.Event()
        impatient: Any = slow
        late = await impatient("x", patience, return_state=True)
        patience.set()
        return [late, await impatient.with_options(timeout_seconds=60)("x", patience, return_state=True)]

    late, in_time = run_async(run())
    assert late.name == "TimedOut"
    assert (in_time.name, in_time.result()) == ("Completed", "x")


# Configuring


def test_with_options_retries_a_copy_of_the_task() -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def flaky(text: str) -> str:
        if calls.note() < 3:
            raise SpeechError(text)
        return text

    assert flaky.with_options(retries=2)("x") == "x"
    assert flaky("x", return_state=True).name == "Cached"


def test_a_task_of_another_name_is_another_task() -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def length(text: str) -> int:
        calls.note()
        return len(text)

    assert [length("x"), length.with_options(name="other")("x")] == [1, 1]
    assert calls.count == 2


def test_refresh_cache_computes_and_overwrites(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    assert number("x") == 1
    assert number.with_options(refresh_cache=True)("x") == 2
    assert number("x") == 2
    assert outcomes(cache) == [MISS, BYPASSED, HIT]


def test_the_setting_to_refresh_does_as_the_option_and_the_option_wins(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    assert number("x") == 1
    with temporary_settings({PREFECT_TASKS_REFRESH_CACHE: True}):
        assert number("x") == 2
        assert number.with_options(refresh_cache=False)("x") == 2
    assert number("x") == 2
    assert outcomes(cache) == [MISS, BYPASSED, HIT, HIT]


def test_prefects_setting_to_disable_caching_is_honoured(cache: TieredCache) -> None:
    calls = Calls()
    with temporary_settings({PREFECT_TASKS_DISABLE_CACHING: True}):

        @cached_task(kind=TRANSCRIPT)
        def number(text: str) -> int:
            del text
            return calls.note()

    assert [number("x"), number("x")] == [1, 2]
    assert outcomes(cache) == []


@pytest.mark.parametrize(
    "expires, kind_ttl, lifetime", [(10, 60, 10), (60, 10, 10), (None, 10, 10)], ids=["option", "kind", "none"]
)
def test_the_shorter_of_expiration_and_lifetime_wins(
    cache: TieredCache, expires: int | None, kind_ttl: int, lifetime: int
) -> None:
    kind = CacheKind("short", ttl=timedelta(seconds=kind_ttl))

    @cached_task(kind=kind, cache_expiration=timedelta(seconds=expires) if expires else None)
    def number(text: str) -> int:
        return len(text)

    number("x")
    entry = cache.lookup(_only_key(cache)).entry

    assert entry is not None
    assert entry.expires_at - entry.created_at == pytest.approx(lifetime)


def test_an_expiration_given_by_with_options_counts(cache: TieredCache) -> None:
    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        return len(text)

    number.with_options(cache_expiration=timedelta(seconds=5))("x")
    entry = cache.lookup(_only_key(cache)).entry

    assert entry is not None
    assert entry.expires_at - entry.created_at == pytest.approx(5)


def test_mode_off_neither_looks_nor_stores(cache: TieredCache, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    monkeypatch.setenv("CACHE_BLOCKS_MODE", "off")
    assert [number("x"), number("x")] == [1, 2]
    monkeypatch.delenv("CACHE_BLOCKS_MODE")
    assert number("x") == 3
    assert outcomes(cache) == [MISS]


def test_mode_read_only_takes_what_there_is_and_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    assert number("there") == 1
    monkeypatch.setenv("CACHE_BLOCKS_MODE", "read-only")
    assert number("there") == 1
    assert [number("new"), number("new")] == [2, 3]
    monkeypatch.delenv("CACHE_BLOCKS_MODE")
    assert number("new") == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"cache_policy": INPUTS}, "cache_policy cannot be given"),
        ({"cache_key_fn": tiered_cache_key_fn(TRANSCRIPT)}, "cache_ignore"),
        ({"result_storage": "local-file-system/x"}, "tiers are the storage"),
        ({"result_storage_key": "x"}, "made from task and arguments"),
        ({"result_serializer": "pickle"}, "stored as JSON"),
        ({"cache_result_in_memory": True}, "cannot be invalidated"),
        ({"persist_result": False}, "use prefect.task"),
    ],
)
def test_contradictory_options_are_refused_at_decoration(options: dict[str, Any], message: str) -> None:
    def number() -> int:
        return 1

    with pytest.raises(ConfigurationError, match=message):
        cached_task(number, kind=TRANSCRIPT, **options)


def _generates() -> Iterator[int]:
    yield 1


async def _generates_async() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize("function", [_generates, _generates_async])
def test_generators_are_refused_at_decoration(function: Callable[..., Any]) -> None:
    with pytest.raises(ConfigurationError, match="return a list"):
        cached_task(function, kind=TRANSCRIPT)


def test_a_result_type_that_could_not_come_back_is_refused_at_decoration() -> None:
    def opens(path: str) -> Opaque:
        raise AssertionError(path)

    with pytest.raises(UnsupportedValueError, match="Opaque"):
        cached_task(opens, kind=TRANSCRIPT)


def test_what_is_no_kind_is_refused_at_decoration() -> None:
    def number() -> int:
        return 1

    with pytest.raises(ConfigurationError, match="a kind is needed"):
        cached_task(number, kind="transcript")  # pyright: ignore[reportArgumentType, reportCallIssue]


# Arguments and keys


def test_an_unhashable_argument_is_computed_and_named(cache: TieredCache, caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(engine: Any) -> int:
        del engine
        return calls.note()

    assert [number(Opaque()), number(Opaque())] == [1, 2]
    assert outcomes(cache) == [BYPASSED, BYPASSED]
    assert any("argument 'engine'" in line and "Opaque" in line for line in errors_of(caplog))


def test_strict_makes_an_unhashable_argument_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_STRICT", "true")
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(engine: Any) -> int:
        del engine
        return calls.note()

    @cached_task(kind=TRANSCRIPT)
    async def number_later(engine: Any) -> int:
        await asyncio.sleep(0)
        del engine
        return calls.note()

    with pytest.raises(UnhashableArgumentError, match="engine"):
        number(Opaque())
    with pytest.raises(UnhashableArgumentError, match="engine"):
        run_async(number_later(Opaque()))
    assert calls.count == 0


def test_ignored_arguments_decide_nothing_and_one_called_name_is_for_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT, cache_ignore=("name",))
    def length(text: str, name: str) -> int:
        del name
        calls.note()
        return len(text)

    assert [length("abc", name="a.mp3"), length("abc", name="b.mp3")] == [3, 3]
    assert calls.count == 1
    assert lines_of(caplog, "miss", "hit") == ["miss transcript a.mp3: never seen"]
    with caplog.at_level("DEBUG", "prefect.cache_blocks"):
        assert length("abc", name="c.mp3") == 3
    (line,) = lines_of(caplog, "hit")
    assert line.startswith("hit transcript c.mp3 from memory, saved "), "where from and what for, to who asks"


def test_a_path_counts_by_its_bytes_and_names_the_work(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    calls = Calls()
    one, same, other = tmp_path / "one.txt", tmp_path / "same.txt", tmp_path / "other.txt"
    for path, text in ((one, "abc"), (same, "abc"), (other, "abcd")):
        path.write_text(text)

    @cached_task(kind=TRANSCRIPT)
    def length(path: Path) -> int:
        calls.note()
        return len(path.read_text())

    assert [length(one), length(same), length(other)] == [3, 3, 4]
    assert calls.count == 2
    assert lines_of(caplog, "miss", "hit")[0] == "miss transcript one.txt: never seen"


def test_a_missing_file_is_the_tasks_own_error(cache: TieredCache, tmp_path: Path) -> None:
    @cached_task(kind=TRANSCRIPT)
    def length(path: Path) -> int:
        return len(path.read_text())

    with pytest.raises(FileNotFoundError):
        length(tmp_path / "gone.txt")
    assert outcomes(cache) == [BYPASSED]


def test_results_are_forgotten_by_tag(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=AI_ENHANCEMENT, cache_tags=("all-users", lambda arguments: [f"user:{arguments['user']}"]))
    def number(user: str) -> int:
        del user
        return calls.note()

    assert [number("ada"), number("bob")] == [1, 2]
    cache.invalidate(tag="user:ada")
    assert [number("ada"), number("bob")] == [3, 2]
    cache.invalidate(tag="all-users")
    assert [number("ada"), number("bob")] == [4, 5]


def test_a_tag_function_that_fails_leaves_the_call_uncached_and_says_so(
    cache: TieredCache, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(arguments: dict[str, Any]) -> str:
        return arguments["nobody"]

    @cached_task(kind=AI_ENHANCEMENT, cache_tags=(broken,))
    def number(user: str) -> int:
        return len(user)

    assert number("ada") == 3
    assert outcomes(cache) == [BYPASSED]
    assert any("nobody" in line for line in errors_of(caplog))


def test_usage_that_a_task_records_is_kept_with_its_entry(cache: TieredCache) -> None:
    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        record_usage(audio_seconds=2.5)
        record_usage(audio_seconds=1.0)
        return len(text)

    number("x")
    entry = cache.lookup(_only_key(cache)).entry

    assert entry is not None
    assert entry.usage == {"audio_seconds": 3.5}


# Tasks inside tasks


def test_plain_tasks_inside_a_cached_task_keep_their_own_storage(cache: TieredCache) -> None:
    inner_calls, outer_calls = Calls(), Calls()

    @task(cache_policy=INPUTS, persist_result=True)
    def inner(text: str) -> list[int]:
        return [inner_calls.note(), len(text)]

    @cached_task(kind=TRANSCRIPT)
    def outer(text: str, round_number: int) -> list[int]:
        del round_number
        outer_calls.note()
        return inner(text)

    assert [outer("abc", 1), outer("abc", 1), outer("abc", 2)] == [[1, 3]] * 3
    assert (outer_calls.count, inner_calls.count) == (2, 1)
    assert outcomes(cache) == [MISS, HIT, MISS]
    assert inner("abc", return_state=True).name == "Cached"


def test_a_failing_inner_task_that_persists_its_exception_stays_out_of_the_cache(cache: TieredCache) -> None:
    @task(persist_result=True)
    def inner(text: str) -> str:
        raise SpeechError(text)

    @cached_task(kind=TRANSCRIPT)
    def outer(text: str) -> str:
        state: State[Any] = inner(text, return_state=True)
        assert state.is_failed()
        with pytest.raises(SpeechError):
            state.result()
        return "recovered"

    computed, cached = twice(outer, "x")

    assert (computed.result(), cached.result()) == ("recovered", "recovered")
    assert cached.name == "Cached"
    assert outcomes(cache) == [MISS, HIT]


def test_cached_tasks_inside_cached_tasks_are_looked_up_by_themselves(cache: TieredCache) -> None:
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def inner(text: str) -> int:
        calls.note()
        return len(text)

    @cached_task(kind=AI_ENHANCEMENT)
    def outer(text: str) -> int:
        return inner(text) + inner(text)

    assert [outer("abc"), outer("abc")] == [6, 6]
    assert calls.count == 1
    assert outcomes(cache) == [MISS, MISS, HIT, HIT]


# When tiers do not answer


def test_a_task_works_when_no_tier_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocker = tmp_path / "a file where a folder should be"
    blocker.write_text("")
    monkeypatch.setenv("CACHE_BLOCKS_DATABASE_URL", f"sqlite:///{blocker}/cache.db")
    monkeypatch.setenv("CACHE_BLOCKS_OBJECT_STORE_URL", (blocker / "objects").as_uri())
    calls = Calls()

    @cached_task(kind=TRANSCRIPT)
    def number(text: str) -> int:
        del text
        return calls.note()

    assert [number("x"), number("x")] == [1, 2]


def _only_key(cache: TieredCache) -> str:
    (event,) = recorded(cache, "lookup")
    return event.key

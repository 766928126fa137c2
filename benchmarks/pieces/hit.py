"""One hit through Prefect's own result store.

What Prefect's engine calls when a task's result is cached: the policy's `compute_key`, the result store's `exists` and
`read`, for a transcript as JSON, out of Redis on the same machine. The floor is what no cache in Redis can do without:
GET, LZ4 and orjson. The peers keep the same transcripts, each used as its documentation says. They take turns of
several hits in a row, as in a loop, and of one hit at a time: then code that is longer than the floor's pays more for
what the others have driven out of the processor's caches. The bars are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

import orjson
from prefect import task
from prefect.client.orchestration import get_client
from prefect.client.schemas import TaskRun
from prefect.context import TaskRunContext
from prefect.results import ResultStore
from prefect.states import Running
from redis import Redis

from benchmarks.counting import payloads_decoded, redis_commands
from benchmarks.environment import cache_in_environment, without_log_lines
from benchmarks.measuring import Bar, interleaved, milliseconds, ratio
from benchmarks.payloads import transcript
from benchmarks.peers import hits as peers
from cache_blocks import TRANSCRIPT, TieredCache, TieredCachePolicy, cached_task
from cache_blocks.codec import compress
from tasks.transcript import Transcript

if TYPE_CHECKING:
    from benchmarks.measuring import Bench, Timing

ORDER: Final = 1

SIZES: Final = {"2 KB": 2_000, "46 KB": 46_000, "717 KB": 717_000}
_ROUNDS: Final = {"2 KB": 200, "46 KB": 100, "717 KB": 30}
_HITS_A_TURN: Final = {"2 KB": 20, "46 KB": 10, "717 KB": 5}
_MOST_OVER_FLOOR: Final = {"2 KB": 2.0, "46 KB": 1.5, "717 KB": 1.1}
_LEAST_UNDER_PREFECT: Final = {"2 KB": 8.0, "46 KB": 8.0, "717 KB": 5.0}

# Contestants.
_FLOOR: Final = "floor"
_OURS: Final = "ours"
_TYPED: Final = "ours, pydantic model"
_PREFECT_REDIS: Final = "Prefect, prefect-redis"

# The largest transcript is a few hundred bytes over what the kind puts into Redis by default.
_KIND: Final = replace(TRANSCRIPT, redis_max_bytes=2**20)


def measure(bench: Bench) -> list[Bar]:
    """Measure hits of three sizes, and what they ask of Redis."""
    bench.note(f"against {bench.prefect_url}, which ours asks once for a saved block")
    with without_log_lines():
        with cache_in_environment(bench, f"hit-{uuid4().hex[:8]}") as cache:
            bars = [bar for size in SIZES for bar in _measure_size(bench, cache, size)]
        with cache_in_environment(bench, f"work-{uuid4().hex[:8]}") as cache:
            return [*bars, *_measure_work(bench, cache)]


def _measure_size(bench: Bench, cache: TieredCache, size: str) -> list[Bar]:
    bench.note(f"hits of {size}")
    payload = transcript(SIZES[size], seed=1)
    with ExitStack() as stack:
        contestants = contestants_for(bench, cache, payload, stack)
        for name, contestant in contestants.items():
            assert _plain(contestant()) == payload, f"{name} gives something else back"
        many, rounds = _HITS_A_TURN[size], bench.rounds(_ROUNDS[size])
        in_a_row = interleaved(contestants, rounds, warmup=2, times=many)
        single = interleaved(contestants, rounds, warmup=5)
    payload_bytes = len(orjson.dumps(payload))
    return [
        *_bars(size, f"{many} in a row", payload_bytes, in_a_row),
        *_bars(size, "one at a time", payload_bytes, single),
    ]


def _bars(size: str, how: str, payload_bytes: int, timings: Mapping[str, Timing]) -> list[Bar]:
    over, typed = (ratio(timings[name], timings[_FLOOR]) for name in (_OURS, _TYPED))
    under = ratio(timings[_PREFECT_REDIS], timings[_OURS])
    rounds = {"rounds": len(timings[_OURS].samples), "payload_bytes": payload_bytes}
    note = f"Returned as a pydantic model, with its validation, it takes {typed.median:.2f} times the floor."
    return [
        Bar(
            name=f"a hit of {size}, {how}: time as a multiple of GET + LZ4 + orjson",
            figure=over.median,
            limit=_MOST_OVER_FLOOR[size],
            better="lower",
            detail={**over.spread, **rounds, "milliseconds": milliseconds(timings), "note": note},
        ),
        Bar(
            name=f"a hit of {size}, {how}: times as fast as Prefect with prefect-redis, JSON",
            figure=under.median,
            limit=_LEAST_UNDER_PREFECT[size],
            better="higher",
            detail={**under.spread, **rounds},
        ),
    ]


def contestants_for(
    bench: Bench, cache: TieredCache, payload: Any, stack: ExitStack
) -> dict[str, Callable[[], object]]:
    """Return a hit with ours and with each peer, stored and ready."""
    folder = bench.folder / f"peers-{uuid4().hex}"
    url, plain = bench.redis_url, context_of(task(_plain_task))
    return {
        _FLOOR: peers.floor(payload, url, stack),
        _OURS: ours(cache, payload, _plain_task),
        _TYPED: ours(cache, payload, _typed_task),
        _PREFECT_REDIS: peers.prefect_redis(payload, url, plain),
        "Prefect, local files": peers.prefect_files(payload, folder / "prefect", plain),
        "dogpile.cache, Redis": peers.dogpile(payload, url, stack),
        "cashews, Redis": peers.cashews(payload, url, stack),
        "diskcache": peers.diskcache(payload, folder / "diskcache", stack),
        "joblib.Memory": peers.joblib(payload, folder / "joblib"),
    }


def ours(cache: TieredCache, payload: Any, function: Callable[..., Any]) -> Callable[[], Any]:
    """Store the payload as what ``function`` returns, and return a call of what Prefect's engine calls for a hit."""
    cached = cached_task(function, kind=_KIND)
    policy = cached.cache_policy
    assert isinstance(policy, TieredCachePolicy)
    call = policy.call_of(cached, peers.ARGUMENTS)
    value = Transcript.model_validate(payload) if call.annotation is Transcript else payload
    cache.put_call(call, value, compute_seconds=10.0)
    context = context_of(cached)
    before = context.result_store

    def hit() -> Any:
        key = policy.compute_key(context, peers.ARGUMENTS, {})
        assert key is not None
        assert context.result_store.exists(key)
        value = context.result_store.read(key).result
        context.result_store = before  # each task run has a new context, and leaves nothing for the next one to free
        return value

    return hit


def context_of(of: Any) -> TaskRunContext:
    """Return the context in which the engine asks for a key, for a run of this task outside of a flow."""
    store: Any = ResultStore()  # its methods have an argument that their types do not show
    run = TaskRun(task_key=of.task_key, dynamic_key="0", flow_run_id=None, state=Running())
    return TaskRunContext(
        task=of,
        task_run=run,
        parameters=peers.ARGUMENTS,
        client=get_client(sync_client=True),
        result_store=store.update_for_task(of, _sync=True),
        persist_result=True,
    )


def _measure_work(bench: Bench, cache: TieredCache) -> list[Bar]:
    """Count what a hit asks of Redis, how often it decodes the payload, and what is stored for it."""
    payload = transcript(SIZES["46 KB"], seed=2)
    json = orjson.dumps(payload)
    hit = ours(cache, payload, _plain_task)
    hit()  # Redis learns the generations at the first lookup
    with redis_commands(bench.redis_url) as commands:
        hit()
    stored = _largest_entry(bench.redis_url, cache.settings.namespace)
    decoded = payloads_decoded(hit, len(json))
    compressed = len(compress(json))
    over = stored - 1.01 * compressed
    sizes = {"stored_bytes": stored, "compressed_bytes": compressed, "payload_bytes": len(json)}
    return [
        Bar("Redis commands for a hit", commands.total(), 1, "lower", "commands", {"commands": dict(commands)}),
        Bar("payloads decoded for a hit", decoded, 1, "lower", "times"),
        Bar("stored for 46 KB, over 1.01 times the compressed payload", over, 512, "lower", "B", sizes),
    ]


def _largest_entry(redis_url: str, namespace: str) -> int:
    with Redis.from_url(redis_url) as client:
        names = cast("Iterator[bytes]", client.scan_iter(match=f"cache-blocks:{namespace}:entry:*"))
        return max(client.strlen(name) for name in names)


def _plain(value: Any) -> Any:
    return orjson.loads(orjson.dumps(value.model_dump())) if isinstance(value, Transcript) else value


def _plain_task(recording: str, model: str, language: str) -> dict[str, Any]:
    raise AssertionError(f"{recording} was computed with {model} ({language})")


def _typed_task(recording: str, model: str, language: str) -> Transcript:
    raise AssertionError(f"{recording} was computed with {model} ({language})")

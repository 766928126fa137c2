"""One hit with each peer, used as its documentation says, on one payload: what a second call of the same costs.

Each function stores the payload and returns a contestant: a function without arguments that gives it back. What it
opens is closed by the stack.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

import orjson
from prefect.cache_policies import INPUTS
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem
from prefect.results import ResultStore
from prefect.serializers import JSONSerializer

from cache_blocks.tiers.redis import connect

if TYPE_CHECKING:
    from pathlib import Path

    from prefect.filesystems import WritableFileSystem

ARGUMENTS: Final = {"recording": "5f2b7c0e9d", "model": "large-v3", "language": "en"}
LIFETIME_SECONDS: Final = 24 * 3600

Contestant = Callable[[], Any]


def floor(payload: Any, redis_url: str, stack: ExitStack) -> Contestant:
    """GET, LZ4 and orjson, with the client that ours uses: what none of the others can do without."""
    client: Any = cast("Any", connect(redis_url, timeout_seconds=0.5)).client
    stack.callback(client.connection_pool.disconnect)
    key = f"floor:{uuid4()}"
    lz4: Any = import_module("lz4.frame")
    client.set(key, lz4.compress(orjson.dumps(payload)), ex=LIFETIME_SECONDS)
    return lambda: orjson.loads(lz4.decompress(client.get(key)))


def prefect_redis(payload: Any, redis_url: str, context: TaskRunContext) -> Contestant:
    """Prefect's result store in Redis, by its own integration, as JSON."""
    database: Any = import_module("prefect_redis").RedisDatabase.from_connection_string(redis_url)
    database._block_document_id = uuid4()  # noqa: SLF001 - as saving it does, without which nothing can be written
    return _prefect(payload, database, context)


def prefect_files(payload: Any, folder: Path, context: TaskRunContext) -> Contestant:
    """Prefect's result store in local files, as JSON."""
    return _prefect(payload, LocalFileSystem(basepath=str(folder)), context)


def _prefect(payload: Any, storage: WritableFileSystem, context: TaskRunContext) -> Contestant:
    store = ResultStore(result_storage=storage, serializer=JSONSerializer(), cache_result_in_memory=False)

    def key() -> str:
        made = INPUTS.compute_key(context, ARGUMENTS, {})
        assert made is not None
        return made

    def hit() -> Any:
        found = key()
        assert store.exists(found)
        return store.read(found).result

    store.write(payload, key())
    return hit


def dogpile(payload: Any, redis_url: str, stack: ExitStack) -> Contestant:
    """dogpile.cache with Redis; it pickles."""
    make_region: Any = import_module("dogpile.cache").make_region
    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=LIFETIME_SECONDS,
        arguments={"url": redis_url, "redis_expiration_time": LIFETIME_SECONDS + 60},
    )
    for client in (region.backend.reader_client, region.backend.writer_client):
        stack.callback(client.close)
    cached = region.cache_on_arguments(namespace=str(uuid4()))(_given_once(payload))
    return _called(cached, tuple(ARGUMENTS.values()), {})


def cashews(payload: Any, redis_url: str, stack: ExitStack) -> Contestant:
    """Run cashews with Redis; it pickles and is asynchronous, so the loop that it needs runs for each call."""
    cache: Any = import_module("cashews").Cache()
    cache.setup(redis_url)
    given = _given_once(payload)
    loop = asyncio.new_event_loop()
    stack.callback(loop.close)
    stack.callback(lambda: loop.run_until_complete(cache.close()))

    async def transcribe(recording: str, model: str, language: str) -> Any:
        return given(recording, model, language)

    cached = cache(ttl=LIFETIME_SECONDS, prefix=str(uuid4()))(transcribe)
    hit: Contestant = lambda: loop.run_until_complete(cached(**ARGUMENTS))  # noqa: E731 - one line as with the others
    hit()
    return hit


def diskcache(payload: Any, folder: Path, stack: ExitStack) -> Contestant:
    """Run diskcache: SQLite and files; it pickles."""
    cache = stack.enter_context(import_module("diskcache").Cache(str(folder)))
    return _called(cache.memoize(expire=LIFETIME_SECONDS)(_given_once(payload)), (), ARGUMENTS)


def joblib(payload: Any, folder: Path) -> Contestant:
    """joblib.Memory: files; it pickles."""
    memory: Any = import_module("joblib").Memory(str(folder), verbose=0)
    return _called(memory.cache(_given_once(payload)), (), ARGUMENTS)


def _called(function: Callable[..., Any], positional: tuple[str, ...], named: dict[str, str]) -> Contestant:
    """Compute once and return the call that then hits."""
    function(*positional, **named)
    return lambda: function(*positional, **named)


def _given_once(payload: Any) -> Callable[..., Any]:
    """Return a function that computes once: a second time it would not have been a hit."""
    left = [payload]

    def transcribe(recording: str, model: str, language: str) -> Any:
        assert left, f"{recording} was computed again with {model} ({language})"
        return left.pop()

    return transcribe

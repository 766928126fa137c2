"""Namespaces: which names there are, and that no two of them can ever mean the same place in any tier."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.schemas.automations import Automation, EventTrigger
from prefect.events.schemas.events import Resource, ResourceSpecification
from redis import Redis

from cache_blocks import SEARCH_RESULTS, CacheSettings, TieredCache
from cache_blocks.database import Database
from cache_blocks.errors import ConfigurationError, InvalidKeyError
from cache_blocks.events import INVALIDATED, LOOKUP, TIER_DOWN, CacheEvent
from cache_blocks.leases import LeaseState, RedisLeases, SqlLeases
from cache_blocks.prefect import emitting
from cache_blocks.prefect.automations import save_automations
from cache_blocks.prefect.block import TieredCacheBlock
from cache_blocks.prefect.emitting import EventEmitter
from cache_blocks.prefect.saved_block import check_owner, forget_saved_blocks, saved_block_id
from cache_blocks.testing.samples import entry_for
from cache_blocks.tiers.memory import MemoryTier
from cache_blocks.tiers.object_store import ObjectStore, ObjectStoreTier
from cache_blocks.tiers.redis import RedisTier, connect
from cache_blocks.tiers.sql import SqlTier

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from cache_blocks.tiers.base import Tier
    from cache_blocks.tiers.redis_servers import RedisServers
    from tests.servers.s3 import S3Bucket

KEY = "transcript:walrus"
REFUSED = ["", "a:b", "a/b", "a%", "a*", "a?", "[a]", "a b", ".", "..", "_a", "-a", "a\n", "a\x00", "{a}", "a.b", "ä"]

_ends = st.text("ab_-0Z", max_size=4)
_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", fullmatch=True)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[str, str]:
    """Two allowed names, mostly alike: one the beginning of the other, in other letters, or with SQL's wildcard."""
    one = draw(_names)
    alike = [one[:-1] + "_", one[:-1] + "-", one.swapcase(), one[: len(one) // 2], (one + draw(_ends))[:64]]
    allowed = [name for name in alike if name and name[0] not in "_-" and name != one]
    return one, draw(st.sampled_from(allowed) if allowed else _names.filter(lambda name: name != one))


few = settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


# Which names there are


@pytest.mark.parametrize("name", [*REFUSED, "x" * 65])
def test_a_name_that_could_be_read_in_two_ways_is_refused_where_it_is_set(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\x00" not in name:
        monkeypatch.setenv("CACHE_BLOCKS_NAMESPACE", name)
        with pytest.raises(pydantic.ValidationError, match="is not a namespace: 1 to 64 letters, digits, '_' or '-'"):
            CacheSettings()
    with pytest.raises(pydantic.ValidationError, match="is not a namespace"):
        TieredCacheBlock(namespace=name).settings()
    with pytest.raises(InvalidKeyError, match="is not a namespace"):
        MemoryTier(name)


# Keys and prefixes in each tier


def put_in_one_and_look_in_the_other(make_tier: Callable[[str], Tier], one: str, other: str) -> None:
    """The same key in two namespaces of one backend: neither sees, lists, counts nor deletes the other's."""
    here, there = make_tier(one), make_tier(other)
    here.write([entry_for(KEY, "mine", namespace=one)])
    assert (list(here.keys()), list(there.keys())) == ([KEY], [])
    assert there.read([KEY]).entries == {}
    assert there.delete([KEY]) == 0
    there.write([entry_for(KEY, "theirs", namespace=other)])
    assert here.delete([KEY]) == 1
    assert (list(here.keys()), list(there.keys())) == ([], [KEY])
    assert set(there.read([KEY]).entries) == {KEY}
    there.delete([KEY])


@pytest.fixture
def servers(redis_url: str) -> Generator[RedisServers]:
    """One Redis, as the cache talks to it."""
    servers = connect(redis_url, 60)
    yield servers
    servers.close()


@few
@given(names=_pairs())
def test_in_redis(names: tuple[str, str], servers: RedisServers, redis_client: Redis) -> None:
    redis_client.flushdb()
    put_in_one_and_look_in_the_other(partial(RedisTier, servers), *names)
    here, there = (RedisTier(servers, name) for name in names)
    here.raise_generations({"all": 7})
    assert there.read([], ["all"]).generations == {}, "a generation of one is none of the other's"


@few
@given(names=_pairs())
def test_in_a_folder(names: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> None:
    store = ObjectStore(f"file://{tmp_path_factory.mktemp('objects')}")
    put_in_one_and_look_in_the_other(partial(ObjectStoreTier, store), *names)
    here, there = (ObjectStoreTier(store, name) for name in names)
    here.mirror_generations({"all": 7})
    assert (here.mirrored_generations(), there.mirrored_generations()) == ({"all": 7}, {})


@settings(few, max_examples=5)
@given(names=_pairs())
def test_in_a_bucket(names: tuple[str, str], s3: S3Bucket, tmp_path: Path) -> None:
    store = ObjectStore(f"{s3.url}/{len(list(tmp_path.iterdir()))}", s3.options, 60)
    (tmp_path / str(len(list(tmp_path.iterdir())))).touch()
    put_in_one_and_look_in_the_other(partial(ObjectStoreTier, store), *names)


@pytest.fixture
def databases(tmp_path: Path, postgres_url: str) -> Generator[list[Database]]:
    """One SQLite file and one PostgreSQL database."""
    both = [Database(f"sqlite:///{tmp_path / 'cache.db'}", 60), Database(postgres_url, 60)]
    yield both
    for database in both:
        database.close()


@few
@given(names=_pairs())
def test_in_sql(names: tuple[str, str], databases: list[Database]) -> None:
    for database in databases:
        put_in_one_and_look_in_the_other(partial(SqlTier, database), *names)


@few
@given(names=_pairs())
def test_leases(names: tuple[str, str], databases: list[Database], servers: RedisServers, redis_client: Redis) -> None:
    redis_client.flushdb()
    books = [[SqlLeases(database, name, 60) for name in names] for database in databases]
    for here, there in [*books, [RedisLeases(servers, name, 60) for name in names]]:
        assert here.acquire(KEY, "mine").state is LeaseState.MINE
        assert there.view(KEY).state is LeaseState.FREE
        there.release(KEY, "mine")
        assert not there.renew(KEY, "mine")
        assert here.view(KEY).state is LeaseState.HELD
        here.release(KEY, "mine")


@given(names=_pairs())
def test_names_of_copies_on_this_machine_and_of_blocks(names: tuple[str, str]) -> None:
    """Local copies have a folder each; blocks may share a name, and then the second is refused, see below."""
    one, other = (CacheSettings(namespace=name) for name in names)
    assert one.local_files != other.local_files
    assert one.local_files.parent == other.local_files.parent
    assert set(one.block) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")


def test_inside_a_computation_of_one_the_other_takes_its_own_lease(cache_home: Path) -> None:
    """A computation that asks for its own key computes at once; for the same key of another namespace it does not."""
    one, other = (TieredCache(CacheSettings(home=cache_home, namespace=name)) for name in ("a", "b"))
    held: list[LeaseState] = []

    def inner() -> str:
        held.append(other.parts.leases.view("search-results:x").state)
        return "other"

    def outer() -> str:
        return str(other.get_or_compute("search-results:x", inner, kind=SEARCH_RESULTS))

    assert one.get_or_compute("search-results:x", outer, kind=SEARCH_RESULTS) == "other"
    assert held == [LeaseState.HELD]
    for cache in (one, other):
        cache.close()


# Prefect's server, which they share


@pytest.mark.parametrize("quiet", ["team-a", "team", "team_ab", "Team_a"])
def test_an_alert_of_one_hears_nothing_of_another(
    quiet: str, prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert prefect_server
    heard: list[dict[str, str]] = []

    def hear(event: str, resource: dict[str, str], **_: object) -> None:
        heard.append({"event": event, **resource})

    monkeypatch.setattr(emitting, "emit_event", hear)
    hook = CustomWebhookNotificationBlock(name="hook", url="http://localhost:1", headers=None, cookies=None)
    hook.save("hook", overwrite=True)
    names = {name: save_automations(name, "custom-webhook/hook") for name in (quiet, "team_a")}
    for name in names:
        emitter = EventEmitter(name)
        emitter([CacheEvent(TIER_DOWN, tier="redis"), CacheEvent(LOOKUP, "transcript", KEY, "hit")])
        emitter([CacheEvent(INVALIDATED, reason="all")])
        emitter.flush()

    ids = {
        name: {one["prefect.resource.id"] for one in heard if one["cache-blocks.namespace"] == name} for name in names
    }
    assert len(ids[quiet]) == len(ids["team_a"]) == 3
    assert not ids[quiet] & ids["team_a"]
    for name, own in names.items():
        for automation in automations_named(own):
            assert isinstance(automation.trigger, EventTrigger)
            match = ResourceSpecification.model_validate(automation.trigger.match)
            matching = [one for one in heard if match.matches(Resource.model_validate(one))]
            assert {one["cache-blocks.namespace"] for one in matching} == {name}


def automations_named(names: list[str]) -> list[Automation]:
    """What the server has under these names; one each."""
    with get_client(sync_client=True) as client:
        found = [automation for name in names for automation in client.read_automations_by_name(name)]
    assert [automation.name for automation in found] == names
    return found


def test_results_of_one_are_not_loaded_through_the_block_of_another(
    prefect_server: str, cache_home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """`team_a` and `team-a` would have a block of the same name: the second is refused, and never used meanwhile."""
    assert prefect_server
    first, second = (CacheSettings(home=cache_home, namespace=name) for name in ("team_a", "team-a"))
    assert first.block == second.block == "team-a"
    TieredCacheBlock(home=str(cache_home), namespace="team_a").save("team-a", overwrite=True)
    forget_saved_blocks()

    assert saved_block_id(first)
    check_owner(first)
    assert saved_block_id(second) is None
    assert "is of namespace team_a, not of team-a" in caplog.text
    with pytest.raises(
        ConfigurationError, match="CACHE_BLOCKS_BLOCK, or run `prefect block delete tiered-cache/team-a"
    ):
        check_owner(second)
    TieredCacheBlock.delete("team-a")
    forget_saved_blocks()

"""Storing what was computed elsewhere: one by one and in bulk, in all tiers or not at all."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, field_serializer
from sqlalchemy import event

from cache_blocks import NO_VALUE, TRANSCRIPT, CacheSettings, TieredCache
from cache_blocks.errors import UnsupportedValueError
from cache_blocks.values import ValueCodec
from cache_blocks.wrapping import plain_json, wrap

if TYPE_CHECKING:
    from collections.abc import Generator

VALUES = {f"transcript:{number}": {"text": f"sentence {number}"} for number in range(1_100)}


@pytest.fixture
def cache(redis_url: str) -> Generator[TieredCache]:
    cache = TieredCache(CacheSettings(redis_url=SecretStr(redis_url), namespace="writing"))
    yield cache
    cache.close()


def test_many_values_are_in_every_tier_and_come_back(cache: TieredCache) -> None:
    cache.put_many(VALUES, kind=TRANSCRIPT, tags=("nightly",), compute_seconds=2.0)
    assert cache.get_many(VALUES) == VALUES
    assert {tier.name: set(tier.keys()) == VALUES.keys() for tier in cache.parts.chain.tiers} == {
        "redis": True,
        "sql": True,
        "object_store": True,
    }
    assert cache.invalidate(tag="nightly").entries == len(VALUES)
    assert set(cache.get_many(VALUES).values()) == {NO_VALUE}


def test_a_batch_takes_as_many_transactions_as_one_value(cache: TieredCache) -> None:
    cache.put("transcript:first", "connects and migrates", kind=TRANSCRIPT)
    with cache.parts.database.read() as connection:
        engine = connection.engine
    begun: list[str] = []

    def count(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("BEGIN"):
            begun.append(statement)

    event.listen(engine, "before_cursor_execute", count)
    cache.put("transcript:one", "text", kind=TRANSCRIPT)
    of_one = [*begun]
    begun.clear()
    cache.put_many(dict(list(VALUES.items())[:400]), kind=TRANSCRIPT)
    assert begun == of_one


def test_nothing_of_a_batch_is_stored_when_one_value_cannot_be(cache: TieredCache) -> None:
    with pytest.raises(UnsupportedValueError, match="set"):
        cache.put_many({"transcript:good": "text", "transcript:bad": {1, 2}}, kind=TRANSCRIPT)
    assert cache.get("transcript:good") is NO_VALUE


def test_no_value_is_no_work(cache: TieredCache) -> None:
    cache.put_many({}, kind=TRANSCRIPT)
    assert not list(cache.parts.chain.keys())


def test_what_is_invalidated_while_it_is_being_encoded_is_not_kept(cache: TieredCache) -> None:
    class Slow(BaseModel):
        """A result whose encoding is overtaken by an invalidation."""

        text: str

        @field_serializer("text")
        def encode(self, text: str) -> str:
            cache.invalidate(tag="nightly")
            return text

    values = {"transcript:1": Slow(text="computed before"), "transcript:2": Slow(text="likewise")}
    cache.put_many(values, kind=TRANSCRIPT, tags=("nightly",), annotation=Slow)
    assert set(cache.get_many(values, annotation=Slow).values()) == {NO_VALUE}


class Level(enum.IntEnum):
    """Looks like JSON, and would come back as something else."""

    HIGH = 1


class Speaker(enum.StrEnum):
    ANNA = "anna"


class Table(dict[str, int]):
    """No plain dictionary."""


ATOMS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
NESTED = st.recursive(
    ATOMS | st.text(st.characters(codec="utf-8")) | st.sampled_from(["$", "null", (1, "a"), Speaker.ANNA]),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")) | st.sampled_from(["$file"]), inner)
    ),
)


@given(NESTED)
def test_the_short_way_gives_the_json_of_the_long_one(value: Any) -> None:
    assert plain_json(value) in (None, orjson.dumps(wrap(value, "value", [])))


@pytest.mark.parametrize(
    "value", [Level.HIGH, Table(a=1), float("nan"), [None, {"a": float("inf")}], {1: "a"}, {"$file": 1}, b"", (1,)]
)
def test_what_json_would_change_takes_the_long_way(value: Any) -> None:
    assert plain_json(value) is None
    assert plain_json({"results": [{"value": value}]}) is None


def test_an_endless_value_is_refused_at_once() -> None:
    endless: list[Any] = []
    endless += [endless, endless]
    assert plain_json(endless) is None
    with pytest.raises(RecursionError):
        ValueCodec().encode(endless)

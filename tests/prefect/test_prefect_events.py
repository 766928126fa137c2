"""What the cache does as Prefect events: summed, related to their flow run, and able to trigger automations."""

import json
import threading
import time
from collections.abc import Generator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from queue import Queue
from typing import Any
from uuid import uuid4

import pytest
from prefect import flow
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.events.worker import EventsWorker
from prefect.runtime import flow_run

from cache_blocks import TRANSCRIPT, CacheMetrics, TieredCache, cached_map, cached_task
from cache_blocks.errors import ConfigurationError
from cache_blocks.events import LOOKUP, TIER_DOWN, CacheEvent, Origin
from cache_blocks.prefect.automations import save_automations
from cache_blocks.prefect.emitting import emit_events_of, emit_if_low, flush_emitters


@cached_task(kind=TRANSCRIPT)
def double(number: int) -> int:
    return number * 2


def sent() -> None:
    """Let everything that was emitted reach the server."""
    flush_emitters()
    EventsWorker.instance().wait_until_empty()


def events_of(flow_run_id: str, expected: set[str]) -> dict[str, dict[str, Any]]:
    """The events of ours that are related to a flow run, by name; the server takes a moment to list them."""
    sent()
    return next(found for found in _polled(_read_events, flow_run_id) if expected <= set(found))


def _read_events(flow_run_id: str) -> dict[str, dict[str, Any]]:
    wanted = {"event": {"prefix": ["cache-blocks."]}, "related": {"id": [f"prefect.flow-run.{flow_run_id}"]}}
    with get_client(sync_client=True) as client:
        answer = client.request("POST", "/events/filter", json={"filter": wanted})
    return {event["event"]: event for event in answer.json()["events"]}


def _polled(read: Any, *arguments: Any) -> Iterator[Any]:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        yield read(*arguments)
        time.sleep(0.1)  # the server has nothing that one could wait for


def test_hits_and_misses_of_a_batch_are_one_event_each_related_to_the_run() -> None:
    @flow
    def batch() -> str:
        cached_map(double, range(10)).wait()
        return str(flow_run.id)

    first, second = batch(), batch()

    misses = events_of(first, {"cache-blocks.miss"})["cache-blocks.miss"]
    assert misses["payload"]["count"] <= 10
    assert misses["resource"]["prefect.resource.id"] == "cache-blocks.kind.default.transcript"
    hits = events_of(second, {"cache-blocks.hit"})["cache-blocks.hit"]
    assert hits["payload"]["count"] == 10
    assert hits["payload"]["tiers"] == {"memory": 10}


def test_nothing_is_emitted_when_the_settings_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_PREFECT_EVENTS", "false")
    cache = TieredCache()
    emit_events_of(cache)
    run = str(uuid4())

    cache.record([CacheEvent(LOOKUP, "transcript", outcome="hit", origin=Origin(flow_run_id=run))])

    sent()
    assert _read_events(run) == {}


def test_a_low_hit_rate_is_an_event_only_below_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_BLOCKS_HIT_RATE_ALERT", "0.5")
    cache = TieredCache()
    low, good = str(uuid4()), str(uuid4())
    lookups = [CacheEvent(LOOKUP, "transcript", outcome=outcome) for outcome in ("hit", "miss", "miss")]

    emit_if_low(cache, CacheMetrics.from_events(lookups[:2]), good)
    emit_if_low(cache, CacheMetrics.from_events([]), good)
    emit_if_low(cache, CacheMetrics.from_events(lookups), low)

    payload = events_of(low, {"cache-blocks.hit-rate-low"})["cache-blocks.hit-rate-low"]["payload"]
    assert payload == {"hits": 1, "lookups": 3, "hit_rate": 0.3333}
    assert _read_events(good) == {}


@pytest.fixture
def webhook() -> Generator[tuple[str, Queue[Any]]]:
    """A server that somebody is notified through: its address, and what it was sent."""
    received: Queue[Any] = Queue()

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name
            del format, args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", received
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_ready_automation_tells_somebody_that_a_tier_is_down(
    cache: TieredCache, webhook: tuple[str, Queue[Any]]
) -> None:
    url, received = webhook
    name = f"alerts-{uuid4().hex[:8]}"
    body = {"subject": "{{subject}}", "body": "{{body}}"}
    block = CustomWebhookNotificationBlock(name=name, url=url, json_data=body, headers=None, cookies=None)
    block.save(name)

    names = save_automations("default", f"{CustomWebhookNotificationBlock.get_block_type_slug()}/{name}")
    again = save_automations("default", f"{CustomWebhookNotificationBlock.get_block_type_slug()}/{name}")
    emit_events_of(cache)
    cache.record([CacheEvent(TIER_DOWN, tier="redis", reason="Connection refused")])
    sent()

    assert names == again == ["cache-blocks: tier down (default)", "cache-blocks: hit rate low (default)"]
    told = received.get(timeout=60)
    assert told["subject"] == "Cache tier redis: tier-down"
    assert "Connection refused" in told["body"]
    assert "cache-blocks doctor" in told["body"]


def test_a_block_that_is_not_saved_is_named_with_the_way_out() -> None:
    with pytest.raises(ConfigurationError, match="'slack-webhook/nobody'; save a notification block"):
        save_automations("default", "slack-webhook/nobody")

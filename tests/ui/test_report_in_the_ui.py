"""The report as a reader sees it: Prefect's own UI in a real browser, in both themes."""

from __future__ import annotations

import io
import os
import time
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import av
import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import TaskRun
from prefect.events.worker import EventsWorker
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

from cache_blocks import TRANSCRIPT, TieredCache, cached_task
from flows.demo_server import prefect_server
from tests.ui.browser import browser, chromium
from tests.ui.screenshots import THEMES, report_of, report_page

if TYPE_CHECKING:
    from collections.abc import Generator

    from tests.ui.browser import Page, Theme

EXECUTABLE: Final = chromium()
NAMES: Final = ("a.mp3", "b.mp3")
IMAGES: Final = "[...document.querySelectorAll('.markdown-renderer img')]"
LINKS: Final = "[...document.querySelectorAll('.markdown-renderer a')]"

pytestmark = pytest.mark.skipif(EXECUTABLE is None, reason="there is no Chromium on this machine")


@cached_task(kind=TRANSCRIPT, cache_ignore=("name",))
def transcribe(sound: str, model: str, name: str) -> str:
    del name
    return f"{sound} as {model} hears it"


@flow(name="nightly")
def nightly(model: str) -> str:
    for name in NAMES:
        transcribe(f"sound of {name}", model, name)
    return str(flow_run.id)


@pytest.fixture(scope="module")
def ui_url(tmp_path_factory: pytest.TempPathFactory) -> Generator[str]:
    """A Prefect server with its UI, which runs of this module report to."""
    home = tmp_path_factory.mktemp("ui")
    with prefect_server(os.environ | {"PREFECT_HOME": str(home)}, home) as api_url:
        settings: dict[Any, Any] = {PREFECT_API_URL: api_url, PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}
        # One sender of events serves a process, and stays with the server that it was made for.
        EventsWorker.drain_all()
        with temporary_settings(settings):
            yield api_url.removesuffix("/api")
            EventsWorker.drain_all()


@pytest.fixture(scope="module")
def page() -> Generator[Page]:
    """The page of a browser."""
    assert EXECUTABLE is not None
    with browser(EXECUTABLE) as page:
        yield page


def brightness(png: bytes, x: float, y: float) -> float:
    """How bright a pixel is, 0 to 1."""
    with av.open(io.BytesIO(png), "r") as picture:
        pixels = next(picture.decode(video=0)).to_ndarray(format="rgb24")
    return float(pixels[round(y), round(x)].mean()) / 255


def shown(page: Page, ui_url: str, run: str, theme: Theme) -> tuple[str, list[str]]:
    """Open a run's report; return its headline and what its charts say to who cannot see them."""
    report_page(page, ui_url, report_of(run), theme)
    headline: str = page.ask("document.querySelector('.markdown-renderer h1').innerText")
    return headline, page.ask(f"{IMAGES}.map(image => image.alt)")


@pytest.mark.parametrize("theme", THEMES)
def test_a_cold_a_hot_and_a_changed_run_are_told_apart_at_a_glance(page: Page, ui_url: str, theme: Theme) -> None:
    cold, hot, changed = nightly("small"), nightly("small"), nightly("large")

    headline, charts = shown(page, ui_url, cold, theme)
    assert headline == "0 % hit, nothing saved"
    assert charts == ["Where lookups were answered: transcript 0 % hit, 0 s saved"]

    headline, charts = shown(page, ui_url, hot, theme)
    assert headline.startswith("100 % hit, ")
    assert charts[1] == "The last 2 runs of this flow, hit rates: 0 %, 100 %"

    headline, charts = shown(page, ui_url, changed, theme)
    assert headline == "0 % hit, nothing saved"
    assert charts[1] == "The last 3 runs of this flow, hit rates: 0 %, 100 %, 0 %"
    text: str = page.ask("document.body.innerText")
    assert "2 changed: model: small -> large (a.mp3, b.mp3)" in text
    assert "hit rate 100 % → 0 %" in text


@pytest.mark.parametrize("theme", THEMES)
def test_charts_are_drawn_unscaled_and_in_the_theme_of_the_page(page: Page, ui_url: str, theme: Theme) -> None:
    """The browser prefers the other theme: what the page around a chart has chosen decides."""
    nightly("small")
    shown(page, ui_url, nightly("small"), theme)

    boxes: list[dict[str, float]] = page.ask(f"{IMAGES}.map(image => image.getBoundingClientRect().toJSON())")
    picture = page.photograph(1280, 900)
    assert [box["width"] for box in boxes] == [700, 700]
    for box in boxes:
        card = brightness(picture, box["left"] + 350, box["top"] + 6)
        beside = brightness(picture, box["left"] - 10, box["top"] + 6)
        assert (card > 0.5, beside > 0.5) == ((True, True) if theme == "light" else (False, False))


def task_run_of(task_run_id: str) -> TaskRun:
    """The task run; they arrive at the API as events, a moment later."""
    deadline = time.monotonic() + 60
    while True:
        with get_client(sync_client=True) as client:
            try:
                return client.read_task_run(UUID(task_run_id))
            except ObjectNotFound:
                assert time.monotonic() < deadline
                time.sleep(0.1)


def test_links_lead_to_the_task_runs_and_to_the_run_before(page: Page, ui_url: str) -> None:
    before = nightly("small")
    shown(page, ui_url, nightly("large"), "light")

    links: dict[str, str] = page.ask(f"Object.fromEntries({LINKS}.map(link => [link.innerText, link.href]))")
    assert links.pop(next(text for text in links if text.startswith("the run of"))) == (
        f"{ui_url}/runs/flow-run/{before}"
    )
    assert set(links) == set(NAMES)
    task_run = task_run_of(links["a.mp3"].rpartition("/")[2])
    page.show(links["a.mp3"], theme="light", width=1280, height=900)
    page.wait_for(f"document.body?.innerText.includes({task_run.name!r})")


@pytest.fixture(autouse=True)
def cache(cache_home: object) -> Generator[TieredCache]:
    """This test's cache."""
    del cache_home
    cache = TieredCache.from_settings()
    yield cache
    cache.close()

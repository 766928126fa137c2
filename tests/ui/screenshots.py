"""Pictures of the report in Prefect's own UI, made by running the pipeline: ``make screenshots``.

A server, a Redis and the recordings of samples/ are real, and so is the speech recognition; the chat model that
improves the texts is a stand-in of the tests, priced as if it were not. Recordings come in from night to night; one
night somebody invalidates, on the last the chat model changes.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from tests.ui.browser import Page, Theme, browser, chromium

ROOT: Final = Path(__file__).parents[2]
IMAGES: Final = ROOT / "docs" / "images"
DATED: Final = "reports.json"
SHOTS: Final = ("cold", "hot", "model-change")
THEMES: Final[tuple[Theme, ...]] = ("light", "dark")
WIDTH: Final = 1280
_LEAST_HEIGHT: Final = 700
_MARGIN: Final = 24
_EDGE: Final = 6  # of the window, whose last rows the browser may leave unpainted
_SAMPLES: Final = ("austen-870.mp3", "austen-880.wav", "austen-890.m4a", "austen-920.ogg", "austen-930.flac")
_ANSWER: Final = {"text": "It is a truth universally acknowledged.", "keywords": ["truth"], "summary": "A truth."}
_PRICES: Final = {
    "transcript": {"audio_minute": 0.006, "compute_hour": 0.4},
    "ai-enhancement": {"tokens_in": 0.005, "tokens_out": 0.015},
}


def report_page(page: Page, ui_url: str, artifact_id: str, theme: Theme) -> None:
    """Open a report in a theme and wait until all of it is there.

    Args:
        page: The browser's.
        ui_url: Address of Prefect's UI.
        artifact_id: The report's artifact.
        theme: What the UI is switched to; the browser prefers the opposite, so that a report that follows the browser
            rather than the UI is found out.
    """
    address = f"{ui_url}/artifacts/artifact/{artifact_id}"
    opposite: Theme = "dark" if theme == "light" else "light"
    page.show(address, theme=opposite, width=WIDTH, height=900, storage={"color-scheme": json.dumps(theme)})
    page.wait_for("document.querySelector('.markdown-renderer h1') && document.fonts.status === 'loaded'")
    page.wait_for("[...document.querySelectorAll('.markdown-renderer img')].every(image => image.naturalWidth > 0)")


def photograph(page: Page, ui_url: str, artifact_id: str, theme: Theme) -> bytes:
    """Return a picture of a report, as high as the report is."""
    report_page(page, ui_url, artifact_id, theme)
    bottom = page.ask("[...document.querySelectorAll('.markdown-renderer')].pop().getBoundingClientRect().bottom")
    height = max(int(bottom), _LEAST_HEIGHT) + _MARGIN
    page.resize(WIDTH, height + _EDGE)
    return page.photograph(WIDTH, height)


def run_nights(recordings: Path, output: Path, chat_url: str) -> dict[str, str]:
    """Run the batch night by night and return the reports' artifacts by the names of the shots."""
    from cache_blocks import AI_ENHANCEMENT, TieredCache
    from flows.batch_transcription import batch_transcription
    from tasks.enhancers.base import EnhancerConfig

    def night(model: str) -> str:
        enhancement = EnhancerConfig(name="openai", model=model, base_url=chat_url)
        state: Any = batch_transcription(str(recordings), str(output), enhancement=enhancement, return_state=True)
        state.result()
        return report_of(str(state.state_details.flow_run_id))

    def arrive(*names: str) -> None:
        for name in names:
            shutil.copy(ROOT / "samples" / name, recordings / name)

    shots: dict[str, str] = {}
    arrive(*_SAMPLES[:3])
    shots["cold"] = night("small-1")
    for name in _SAMPLES[3:]:
        arrive(name)
        night("small-1")
        night("small-1")
    TieredCache.from_settings().invalidate(kind=AI_ENHANCEMENT)
    night("small-1")
    night("small-1")
    shots["hot"] = night("small-1")
    shots["model-change"] = night("large-2")
    return shots


def report_of(flow_run_id: str) -> str:
    """Return the artifact of a flow run's report."""
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId, ArtifactFilterKey

    wanted = ArtifactFilter(
        flow_run_id=ArtifactFilterFlowRunId(any_=[UUID(flow_run_id)]), key=ArtifactFilterKey(any_=["cache-report"])
    )
    with get_client(sync_client=True) as client:
        (report,) = client.read_artifacts(artifact_filter=wanted)
    return str(report.id)


def _run(folder: Path, told: Path) -> None:
    """Run the nights in this process, whose environment says where everything is."""
    from tests.unit.chat_server import chat_server

    (folder / "recordings").mkdir()
    with chat_server(folder) as chat:
        chat.answers(json.dumps(_ANSWER))
        os.chdir(folder)  # so that what the pictures show of paths is short
        told.write_text(json.dumps(run_nights(Path("recordings"), Path("output"), chat.url)))


def _environment(folder: Path, api_url: str, redis_url: str) -> dict[str, str]:
    return os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_API_URL": api_url,
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "CACHE_BLOCKS_HOME": str(folder / "cache"),
        "CACHE_BLOCKS_REDIS_URL": redis_url,
        "CACHE_BLOCKS_COSTS": json.dumps(_PRICES),
        "OPENAI_API_KEY": "none",
    }


def main() -> None:
    """Make the pictures, and a note of when and with what."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path, default=IMAGES, help="folder for the pictures")
    parser.add_argument("--run", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        _run(*arguments.run)
        return
    executable = chromium()
    if executable is None:
        sys.exit("There is no Chromium here; install one, or name it by CHROMIUM=/path/to/it.")
    from flows.demo_server import prefect_server
    from tests.servers.redis import RedisServer

    with tempfile.TemporaryDirectory(prefix="cache-blocks-screenshots-") as name:
        folder = Path(name)
        redis = RedisServer(folder)
        try:
            with prefect_server(_environment(folder, "", redis.url), folder) as api_url:
                told = folder / "shots.json"
                command = [sys.executable, "-m", "tests.ui.screenshots", "--run", str(folder), str(told)]
                subprocess.run(command, cwd=ROOT, env=_environment(folder, api_url, redis.url), check=True)
                _photograph_all(
                    executable, api_url.removesuffix("/api"), json.loads(told.read_text()), arguments.images
                )
        finally:
            redis.stop()


def _photograph_all(executable: str, ui_url: str, shots: dict[str, str], images: Path) -> None:
    images.mkdir(parents=True, exist_ok=True)
    with browser(executable) as page:
        for shot, artifact in shots.items():
            for theme in THEMES:
                (images / f"report-{shot}-{theme}.png").write_bytes(photograph(page, ui_url, artifact, theme))
        used: str = page.call("Browser.getVersion")["product"]
    note = {"date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d}", "prefect": version("prefect"), "browser": used}
    (images / DATED).write_text(json.dumps(note, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Chromium without a window, driven over its debugging protocol: pages are opened, asked and photographed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from websockets.sync.client import ClientConnection, connect

if TYPE_CHECKING:
    from collections.abc import Generator

Theme = Literal["light", "dark"]

_NAMES: Final = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_START_SECONDS: Final = 60
_PAGE_SECONDS: Final = 60
_WHATEVER_SIZE: Final = 64 * 1024 * 1024
_FLAGS: Final = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def chromium() -> str | None:
    """Return the path of a Chromium, that of ``CHROMIUM`` in the environment first; None if there is none."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


class Page:
    """One tab.

    Args:
        socket: Its debugging connection.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = count(1)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result.

        Raises:
            RuntimeError: The browser refuses.
        """
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer: dict[str, Any] = json.loads(self._socket.recv(timeout=_PAGE_SECONDS))
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def show(self, url: str, *, theme: Theme, width: int, height: int, storage: dict[str, str] | None = None) -> None:
        """Open an address.

        Args:
            url: The address.
            theme: What the browser prefers.
            width: Of the window, in pixels.
            height: Of the window, in pixels.
            storage: What the page finds in its ``localStorage``.
        """
        self.call("Page.enable")
        self.resize(width, height)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
        for name, value in (storage or {}).items():
            script = f"localStorage.setItem({json.dumps(name)}, {json.dumps(value)})"
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.call("Page.navigate", url=url)

    def resize(self, width: int, height: int) -> None:
        """Make the window as large as this, in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.wait_for(f"window.innerHeight === {height}")

    def ask(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; a promise is waited for."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"])[:500])
        return found["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: It is not within a minute.
        """
        deadline = time.monotonic() + _PAGE_SECONDS
        while not self.ask(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression}; the page says: {self.ask('document.body.innerText')}")
            time.sleep(0.1)

    def photograph(self, width: int, height: int) -> bytes:
        """Return what the window shows from its upper left corner on, as PNG of this size in pixels."""
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        return base64.b64decode(self.call("Page.captureScreenshot", format="png", clip=clip)["data"])


@contextmanager
def browser(executable: str) -> Generator[Page]:
    """Start a browser and give its one page; it is gone at the end, and all that it has kept."""
    with tempfile.TemporaryDirectory(prefix="cache-blocks-browser-", ignore_cleanup_errors=True) as home:
        command = [executable, *_FLAGS, f"--user-data-dir={home}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = _page_address(Path(home), process)
            with connect(address, max_size=_WHATEVER_SIZE, proxy=None) as socket:
                yield Page(cast("ClientConnection", socket))
        finally:
            process.terminate()
            process.wait(timeout=30)


def _page_address(home: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the address of the first page's debugging connection, once the browser has written its port."""
    import httpx

    deadline = time.monotonic() + _START_SECONDS
    told = home / "DevToolsActivePort"
    while time.monotonic() < deadline and process.poll() is None:
        if told.exists() and (lines := told.read_text().splitlines()):
            pages = httpx.get(f"http://127.0.0.1:{lines[0]}/json/list", trust_env=False).json()
            for page in pages:
                if page["type"] == "page":
                    return page["webSocketDebuggerUrl"]
        time.sleep(0.1)
    raise RuntimeError(f"the browser did not start; it ended with {process.poll()}")

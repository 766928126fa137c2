"""A chat endpoint for tests: fakellm, an OpenAI-compatible server of others, in a thread of this process."""

from __future__ import annotations

import json
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx
import uvicorn
import yaml

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

RETRY_AFTER_SECONDS = 7


class ChatServer:
    """What tests say to the server, and what the code under test has said to it."""

    def __init__(self, url: str, config: Path) -> None:
        self.url = f"{url}/v1"
        self.requests: list[dict[str, Any]] = []
        self._admin = f"{url}/_fakellm"
        self._config = config

    def answers(self, *turns: str | dict[str, Any]) -> None:
        """Answer the n-th request for a text with the n-th of `turns`, and every later one with the last.

        A string is the content of an answer; a dictionary is one of fakellm's responses, such as a status.
        """
        rules = [
            {
                "name": f"turn-{number}",
                "when": {"turn": number} if number < len(turns) else {},
                "respond": {"content": turn} if isinstance(turn, str) else turn,
            }
            for number, turn in enumerate(turns, start=1)
        ]
        self._config.write_text(yaml.safe_dump({"version": 1, "rules": rules}))
        self.requests.clear()
        for verb in ("reload", "reset"):
            httpx.post(f"{self._admin}/{verb}").raise_for_status()


@contextmanager
def chat_server(folder: Path) -> Generator[ChatServer]:
    """Serve until the block ends. Refusals carry a Retry-After, which fakellm itself leaves out."""
    config = folder / "fakellm.yaml"
    config.write_text("version: 1\n")
    os.environ["FAKELLM_CONFIG"] = str(config)  # read when fakellm.server is imported, and by reload
    from fakellm.server import app

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listening = ChatServer(f"http://127.0.0.1:{listener.getsockname()[1]}", config)
        server = uvicorn.Server(uvicorn.Config(_watched(app, listening), log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield listening
        finally:
            server.should_exit = True
            thread.join()


def _watched(app: ASGIApp, listening: ChatServer) -> ASGIApp:
    """Note every request for a chat completion, and add Retry-After to refusals."""

    async def watch(scope: Scope, receive: Receive, send: Send) -> None:
        body = b""

        async def receive_noting() -> Message:
            nonlocal body
            message = await receive()
            if message["type"] == "http.request":
                body += message["body"]
            return message

        async def send_noting(message: Message) -> None:
            if message["type"] == "http.response.start" and scope["type"] == "http":
                _note(message, scope["path"])
            await send(message)

        def _note(message: Message, path: str) -> None:
            if path.endswith("/chat/completions"):
                listening.requests.append(json.loads(body))
            if message["status"] == httpx.codes.TOO_MANY_REQUESTS:
                message["headers"] = [*message["headers"], (b"retry-after", b"%d" % RETRY_AFTER_SECONDS)]

        await app(scope, receive_noting, send_noting)

    return watch

"""The fenced blocks of the documentation, so that tests can run every one of them."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block: its language, text, and the name of the file that it shows, if it is one."""

    language: str
    text: str
    title: str = ""

    @property
    def commands(self) -> list[str]:
        """The lines of a shell block."""
        return [line for line in self.text.splitlines() if line.strip()]


def blocks_of(document: str) -> list[Block]:
    """Return the fenced blocks of a document in the repository."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [Block(language, body, title) for language, title, body in _FENCE.findall(text)]


def shell_block(document: str, first_command: str) -> Block:
    """Return the shell block that begins with a command."""
    return next(block for block in blocks_of(document) if block.commands[0].startswith(first_command))

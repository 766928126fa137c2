"""The command line ``cache-blocks``. Importing this imports nothing else, so that asking for the version is quick."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line: exit code 0 when done, 1 when it failed, 2 when it was used wrongly."""
    if sys.argv[1:] == ["--version"]:
        from cache_blocks import __version__

        sys.stdout.write(f"cache-blocks {__version__}\n")
        return
    from cache_blocks.cli.app import app

    app(prog_name="cache-blocks")

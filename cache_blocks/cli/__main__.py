"""``python -m cache_blocks.cli``."""

from cache_blocks.cli import main

main()

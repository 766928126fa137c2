"""Ours against its peers, on the same payloads and servers, in one run; `python -m benchmarks --list` names the pieces.

Every figure is a ratio or a limit measured in one run, because the machine that measures is rarely the reader's.
"""

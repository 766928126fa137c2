"""A night of a million keys through the real tiers, and what larger nights need; `python -m benchmarks.simulation`.

`night` says what is asked for, `work` makes the entries, `planting` and `asking` do the two halves in processes that
`crew` keeps, `servers` starts and watches what they ask, `running` puts it together, `results` keeps it. From that,
`figures` takes what a lookup costs, `model` reckons what other nights need, and `page` writes docs/scaling.md.
"""

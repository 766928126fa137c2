"""Commands that look: ``stats``, ``ls``, ``show``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cache_blocks.cli.output import Json, complain, emit, moment, say, seconds, size, table, this_cache
from cache_blocks.wording import bytes_in_words, counted, money_in_words, seconds_in_words, share_in_words

if TYPE_CHECKING:
    from cache_blocks.maintenance import EntryDetails, Stats

_EVENTS: Final = 20


class Grouping(StrEnum):
    """What trends are by."""

    DAY = "day"
    KIND = "kind"
    TASK = "task"
    FLOW = "flow"


def stats(
    *,
    by: Annotated[Grouping, typer.Option(help="What the trends are by.")] = Grouping.DAY,
    since: Annotated[float, typer.Option(parser=seconds, metavar="AGE", help="How far back, such as 7d.")] = "30d",  # pyright: ignore[reportArgumentType] - as typed
    json: Json = False,
) -> None:
    """Tell what is kept, how the cache has done by day, kind, task or flow, why it missed, and what takes room.

    JSON: namespace, entries, stored_bytes; kinds (by name: entries, expired, stored_bytes, blob_bytes, compute_seconds,
    oldest, newest, next_expiry); metrics (hits, misses, total, hit_rate, by_tier, seconds_saved, money_saved, by_kind,
    requests and transfer of the object store, and counts of what went wrong); since; currency (empty without prices);
    by; trends (name, lookups, hits, hit_rate, seconds_saved, money_saved, computed, compute_seconds, money_spent);
    causes (kind, cause, misses); biggest and never_read (key, task, subject, created_at, bytes), the latter those of
    the 2,000 biggest that are older than a day and show no hit as long as single events are kept. Times are seconds
    since the epoch.
    """
    from cache_blocks import maintenance

    found = maintenance.stats(this_cache(), by=by.value, since_seconds=since)
    if json:
        emit(found.as_dict())
        return
    _print_stats(found)


def _print_stats(found: Stats) -> None:
    entries = counted(found.entries, "entry", "entries")
    say(f"Namespace {found.namespace}: {entries}, {bytes_in_words(found.stored_bytes)}")
    if found.kinds:
        rows = [
            [
                name,
                f"{kind.entries:,}",
                f"{kind.expired:,}",
                bytes_in_words(kind.stored_bytes),
                bytes_in_words(kind.blob_bytes),
                moment(kind.oldest),
                moment(kind.newest),
                moment(kind.next_expiry),
            ]
            for name, kind in found.kinds.items()
        ]
        columns = ["kind", "entries", "expired", "payload", "files", "oldest", "newest", "next expiry"]
        table(columns, rows, numbers=columns[1:5])
    _print_trends(found)
    for title, entries in (("Biggest", found.biggest), ("Biggest that nobody has read", found.never_read)):
        if entries:
            say(f"{title}:")
            rows = [
                [entry.key, entry.task, entry.subject, moment(entry.created_at), bytes_in_words(entry.bytes)]
                for entry in entries
            ]
            table(["key", "task", "about", "computed", "size"], rows, numbers=["size"])


def _print_trends(found: Stats) -> None:
    if not found.trends:
        say("No lookups in this time.")
        return
    whole = found.metrics
    tiers = ", ".join(f"{tier} {hits:,}" for tier, hits in whole.by_tier.most_common())
    rate = f"{share_in_words(whole.hits, whole.total)} of {counted(whole.total, 'lookup')} hit"
    say(f"Since {moment(found.since)}: {rate}{f' ({tiers})' if tiers else ''}")

    def worth(seconds: float, money: float) -> str:
        priced = found.currency and money
        return seconds_in_words(seconds) + (f", {money_in_words(money, found.currency)}" if priced else "")

    rows = [
        [
            trend.name or f"(no {found.by})",
            f"{trend.lookups:,}",
            f"{trend.hits:,}",
            share_in_words(trend.hits, trend.lookups),
            worth(trend.seconds_saved, trend.money_saved),
            f"{trend.computed:,}",
            worth(trend.compute_seconds, trend.money_spent),
        ]
        for trend in found.trends
    ]
    columns = [found.by, "lookups", "hits", "hit rate", "saved", "computed", "spent"]
    table(columns, rows, numbers=columns[1:])
    from cache_blocks.metrics import traffic_in_words

    if used := traffic_in_words(whole):
        say(f"Object store: {used}")
    if found.causes:
        say("Why lookups missed:")
        table(
            ["kind", "cause", "misses"],
            [[each.kind, each.cause, f"{each.misses:,}"] for each in found.causes],
            numbers=["misses"],
        )


def ls(
    *,
    kind: Annotated[str | None, typer.Option(help="Only of this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    task: Annotated[str | None, typer.Option(help="Only of the task of this name.")] = None,
    older_than: Annotated[float | None, typer.Option(parser=seconds, metavar="AGE", help="Such as 12h or 7d.")] = None,
    larger_than: Annotated[int | None, typer.Option(parser=size, metavar="SIZE", help="Such as 500kB or 10MB.")] = None,
    flow_run: Annotated[
        str | None, typer.Option(metavar="ID", help="Only what this flow run looked up or computed.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many at most.")] = 50,
    after: Annotated[str | None, typer.Option(metavar="KEY", help="Go on after this one, the last of a page.")] = None,
    json: Json = False,
) -> None:
    """List entries, newest first.

    JSON: a list of key, kind, task, tags, created_at, expires_at, compute_seconds, stored_bytes, blob_bytes, placement.
    """
    from cache_blocks import maintenance

    found = maintenance.ls(
        this_cache(),
        kind=kind,
        tag=tag,
        task=task,
        older_than=older_than,
        larger_than=larger_than,
        flow_run=flow_run,
        limit=limit,
        after=after,
    )
    if json:
        emit([entry.as_dict() for entry in found])
        return
    if not found:
        say("No entries.")
        return
    rows = [
        [
            entry.key,
            entry.task,
            moment(entry.created_at),
            moment(entry.expires_at),
            seconds_in_words(entry.compute_seconds),
            bytes_in_words(entry.stored_bytes + entry.blob_bytes),
        ]
        for entry in found
    ]
    table(["key", "task", "computed", "expires", "took", "size"], rows, numbers=["took", "size"])
    if len(found) == limit:
        say(f"There may be more: --after {found[-1].key}, or a higher --limit.")


def show(key: Annotated[str, typer.Argument(help="kind:digest, as `ls` lists it.")], *, json: Json = False) -> None:
    """Show everything about one entry: state, tiers that hold it, tags, what its key was made of, its events.

    JSON: key, state, reason, tiers, created_at, expires_at, compute_seconds, tags, fence, size, stored_bytes, blobs,
    usage, placement, manifest, missing_blobs, events.
    """
    from cache_blocks import maintenance
    from cache_blocks.errors import InvalidKeyError

    cache, problem = this_cache(), f"there is no entry {key}"
    try:
        found = maintenance.show(cache, key)
    except InvalidKeyError as error:
        found, problem = None, str(error)
    if found is None:
        meant = maintenance.closest(cache, key)
        way_out = f"did you mean {' or '.join(meant)}?" if meant else "`cache-blocks ls` lists entries"
        complain(f"{problem}; {way_out}")
        raise typer.Exit(1)
    if json:
        emit(found.as_dict())
        return
    _print_details(found)


def _print_details(found: EntryDetails) -> None:
    facts = [("key", found.key), ("state", f"{found.state}{f' ({found.reason})' if found.reason else ''}")]
    if (entry := found.entry) is not None:
        facts += [
            ("computed", f"{moment(entry.created_at)}, took {seconds_in_words(entry.compute_seconds)}"),
            ("expires", moment(entry.expires_at)),
            ("payload", f"{bytes_in_words(entry.stored_bytes)}, {bytes_in_words(entry.size)} before compression"),
            *(("file", f"{digest} ({bytes_in_words(length)})") for digest, length in entry.blobs.items()),
            *(("usage", f"{name} {amount:g}") for name, amount in entry.usage.items()),
            *(("tag", tag) for tag in entry.tags),
        ]
    facts += [("file gone", digest) for digest in found.missing_blobs]
    facts += [(tier, held) for tier, held in found.tiers.items()]
    facts += [(name, str(value)) for name, value in found.manifest.items() if name != "inputs"]
    inputs: dict[str, dict[str, str]] = found.manifest.get("inputs", {})
    facts += [(f"input {name}", f"{part['shown']} ({part['digest'][:12]}…)") for name, part in inputs.items()]
    table(["what", "value"], facts)
    if found.events:
        latest = found.events[-_EVENTS:]
        rows = [[moment(event.at), event.action, event.outcome, event.tier, event.reason] for event in latest]
        table(["when", "event", "outcome", "tier", "reason"], rows)


def metrics(
    *, prometheus: Annotated[bool, typer.Option("--prometheus", help="In Prometheus' text format.")] = False
) -> None:
    """Give the sums over all processes for a monitoring system: entries, lookups, savings, what went wrong.

    Without --prometheus they are JSON, as `stats --json` gives them.
    """
    if not prometheus:
        stats(json=True)
        return
    from cache_blocks.maintenance.exposition import exposition

    this_cache().parts.events.flush()
    say(exposition(this_cache()).rstrip())

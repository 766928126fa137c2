"""Commands that remove or repair: ``invalidate``, ``forget``, ``gc``, ``verify``. Those that delete ask before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Final

import typer

from cache_blocks.cli.output import DryRun, Json, Yes, complain, confirm, emit, progress, say, table, this_cache
from cache_blocks.wording import bytes_in_words, counted

if TYPE_CHECKING:
    from cache_blocks.maintenance import Collected, Forgotten, Verified

FORGETTING: Final = "flows.forgetting:forget_recording"


def invalidate(
    *,
    key: Annotated[str | None, typer.Option(help="The entry of this key.")] = None,
    kind: Annotated[str | None, typer.Option(help="All entries of this kind.")] = None,
    tag: Annotated[str | None, typer.Option(help="All entries with this tag.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All entries of the namespace.")] = False,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Make entries misses, in every process, at once. Give exactly one of --key, --kind, --tag and --all.

    JSON: scope, entries (SQL's count), told (tiers that know), dry_run.
    """
    from cache_blocks import maintenance

    given = {name: value for name, value in (("key", key), ("kind", kind), ("tag", tag)) if value is not None}
    if len(given) + everything != 1:
        raise typer.BadParameter("give exactly one of --key, --kind, --tag and --all")
    cache = this_cache()
    entries = maintenance.count(cache, **given)
    what = " ".join(next(iter(given.items()))) if given else f"everything in namespace {cache.settings.namespace}"
    told: tuple[str, ...] = ()
    if not dry_run:
        confirm(f"Invalidate {what}, {counted(entries, 'entry', 'entries')}?", yes=yes)
        done = cache.invalidate(key=key, kind=kind, tag=tag)
        told, entries = done.told, done.entries
    if json:
        emit({"scope": what, "entries": entries, "told": told, "dry_run": dry_run})
    elif dry_run:
        say(f"{counted(entries, 'entry', 'entries')} would become misses.")
    else:
        say(f"Invalidated {what}: {counted(entries, 'entry', 'entries')}; told {', '.join(told)}.")


def forget(
    recording: Annotated[str, typer.Argument(help="The file, or the digest of its bytes.")],
    *,
    also: Annotated[
        str,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="Called with the digest, to remove what a pipeline keeps outside the cache; looked for in the working "
            "directory. The default is skipped where there is none.",
        ),
    ] = FORGETTING,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Physically erase everything derived from a recording, from every tier, and prove it by searching again.

    JSON: digest, entries, copies (by tier), blobs, shared (files that another recording has too), events, complete,
    left (by tier, what could not be erased), also (what was called, or nothing), dry_run. Exit code 1 if anything is
    left.
    """
    from cache_blocks import maintenance
    from cache_blocks.cli.loading import load_function

    digest = maintenance.digest_of_recording(recording)
    cache, function = this_cache(), load_function(also, optional=also == FORGETTING)
    if not dry_run:
        confirm(f"Erase everything derived from {recording} ({digest[:12]}…) for good?", yes=yes)
    with progress(quiet=json) as advance:
        hooks = [] if function is None else [function]
        done = maintenance.forget(cache, digest, also=hooks, dry_run=dry_run, on_progress=advance)
    if json:
        emit(done.as_dict() | {"also": also if function else "", "dry_run": dry_run})
    else:
        _print_forgotten(done, dry_run=dry_run)
        if function is None:
            say(f"There is no {FORGETTING} here; what a pipeline keeps outside the cache has not been touched.")
    if not done.complete:
        raise typer.Exit(1)


def _print_forgotten(done: Forgotten, *, dry_run: bool) -> None:
    verb = "Would erase" if dry_run else "Erased"
    say(
        f"{verb} {counted(len(done.entries), 'entry', 'entries')}, {counted(len(done.blobs), 'file')} and "
        f"{counted(done.events, 'event')} of {done.digest}."
    )
    if done.copies:
        say(f"Copies: {', '.join(f'{tier} {number:,}' for tier, number in done.copies.items())}.")
    if done.shared:
        say(f"{counted(len(done.shared), 'file')} stay: another recording has the same.")
    if dry_run:
        return
    if done.complete:
        say("A search of all tiers finds nothing any more.")
    for tier, left in done.left.items():
        complain(f"{tier}: {'; '.join(left[:5])}{' …' if len(left) > 5 else ''}")  # noqa: PLR2004 - a line's worth
    if done.left:
        complain("not everything is gone; run the same command again when the tiers above answer")


def gc(*, dry_run: DryRun = False, json: Json = False) -> None:
    """Delete what has expired or was invalidated, and files that nothing refers to; tell tiers what they missed.

    JSON: expired, invalidated, replicas, blobs, unfinished, local_files, events, leases, bytes_freed, told, untold,
    errors, dry_run. Exit code 1 if a tier did not answer.
    """
    from cache_blocks import maintenance

    cache = this_cache()
    with progress(quiet=json) as advance:
        done = maintenance.collect(cache, dry_run=dry_run, on_progress=advance)
    if json:
        emit(done.as_dict() | {"dry_run": dry_run})
    else:
        _print_collected(done, dry_run=dry_run)
    if done.errors or done.untold:
        raise typer.Exit(1)


def _print_collected(done: Collected, *, dry_run: bool) -> None:
    names = ("expired", "invalidated", "replicas", "blobs", "unfinished", "local_files", "events", "leases")
    counts = {name: done.as_dict()[name] for name in names}
    rows = [(name.replace("_", " "), f"{number:,}") for name, number in counts.items()]
    table(["would be removed" if dry_run else "removed", "number"], rows, numbers=["number"])
    say(f"{bytes_in_words(done.bytes_freed)} {'would be freed' if dry_run else 'freed'}.")
    if done.told:
        say(f"Told tiers {counted(done.told, 'invalidation')} that they had missed.")
    for tier in done.untold:
        complain(f"{tier} still has to be told of an invalidation; run `cache-blocks gc` again when it answers")
    for error in done.errors:
        complain(error)


def verify(*, json: Json = False) -> None:
    """Read every entry and every file, check digests, and remove damaged copies.

    JSON: sound, intact (numbers by tier, and blobs), corrupt (keys by tier, and blobs), missing (files that entries
    refer to and that are gone), errors. Exit code 1 unless sound.
    """
    from cache_blocks import maintenance

    cache = this_cache()
    with progress(quiet=json) as advance:
        found = maintenance.verify(cache, on_progress=advance)
    if json:
        emit(found.as_dict())
    else:
        _print_verified(found)
    if not found.sound:
        raise typer.Exit(1)


def _print_verified(found: Verified) -> None:
    places = sorted(found.intact.keys() | found.corrupt.keys())
    rows = [(place, f"{found.intact[place]:,}", f"{len(found.corrupt.get(place, ())):,}") for place in places]
    table(["where", "intact", "damaged"], rows, numbers=["intact", "damaged"])
    for place, keys in found.corrupt.items():
        for key in keys:
            complain(f"{place}: {key} was damaged; the copy has been removed and will be computed again")
    for digest in found.missing:
        complain(f"object_store: file {digest} is gone; the entries that refer to it are misses")
    for error in found.errors:
        complain(error)

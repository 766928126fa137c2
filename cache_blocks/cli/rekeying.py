"""Commands for private kinds: ``keys new``, ``keys add``, ``keys show``, ``keys name``, ``rekey``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cache_blocks.cli.output import DryRun, Json, complain, emit, progress, say, table, this_cache
from cache_blocks.wording import counted

if TYPE_CHECKING:
    from cache_blocks.maintenance.rekeying import Rekeyed

keys = typer.Typer(no_args_is_help=True, help="Make the key ring of private kinds, and look into it.")

KeyId = Annotated[str, typer.Argument(metavar="[ID]", help="What to call the key; the month by default.")]


@keys.command("new")
def new(name: KeyId = "") -> None:
    """Print a new ring, for CACHE_BLOCKS_PRIVATE_KEYS or a Prefect Secret block. It is stored nowhere."""
    from cache_blocks.private.ring import KeyRing, new_ring

    ring = new_ring(name)
    KeyRing.parse(ring)
    say(ring)


@keys.command("add")
def add(name: KeyId = "") -> None:
    """Print the ring that is in force with a new key in front, which seals from then on. It is stored nowhere."""
    import base64

    from cache_blocks.private.ring import NAMES, KeyRing, new_ring

    ring = this_cache().privacy.ring
    _, _, fresh = new_ring(name).partition(",")
    members = [(NAMES, ring.names), *((key.id, key.secret) for key in ring.keys)]
    names, *old = (f"{member}:{base64.b64encode(secret).decode()}" for member, secret in members)
    text = ",".join([names, fresh, *old])
    KeyRing.parse(text)
    say(text)


@keys.command("show")
def show(*, json: Json = False) -> None:
    """List the keys of the ring by id and check, the current one first; never a key.

    JSON: a list of id, check (of the first digits by which sealed bytes name their key), seals.
    """
    ring = this_cache().privacy.ring
    listed = [{"id": key.id, "check": key.check.hex(), "seals": key is ring.current} for key in ring.keys]
    if json:
        emit(listed)
        return
    table(["key", "check", ""], [[one["id"], one["check"], "seals" if one["seals"] else "opens"] for one in listed])


@keys.command("name")
def name_of(text: Annotated[str, typer.Argument(help="Such as a file's name.")]) -> None:
    """Print what stands for a name in reports, events and logs of private kinds."""
    cache = this_cache()
    _ = cache.privacy.ring
    say(cache.privacy.name(text))


def rekey(*, dry_run: DryRun = False, json: Json = False) -> None:
    """Seal with the current key what other keys of the ring have sealed, in all tiers, and say which keys may go.

    It can be interrupted at any time and run again; nothing becomes unreadable meanwhile for who has the whole ring.

    JSON: complete, current (id of the key), rewritten (copies by tier, and blobs), found (copies of the last walk by id
    of their key), may_go (ids), unreadable (copies by tier that no key of the ring opens), errors, dry_run. Exit code 1
    unless complete, or with --dry-run if a tier did not answer.
    """
    from cache_blocks.maintenance.rekeying import rekey as run

    cache = this_cache()
    try:
        with progress(quiet=json) as advance:
            done = run(cache, dry_run=dry_run, on_progress=advance)
    except KeyboardInterrupt:
        complain("interrupted; nothing is lost, keep all keys in the ring and run `cache-blocks rekey` again")
        raise typer.Exit(1) from None
    if json:
        emit(done.as_dict() | {"dry_run": dry_run})
    else:
        _print(done, dry_run=dry_run)
    if done.errors or not (dry_run or done.complete):
        raise typer.Exit(1)


def _print(done: Rekeyed, *, dry_run: bool) -> None:
    if done.found:
        rows = [[name, f"{count:,}", "current" if name == done.current else ""] for name, count in done.found.items()]
        table(["key", "sealed with it", ""], rows, numbers=["sealed with it"])
    for where, count in done.unreadable.items():
        complain(f"{where}: {counted(count, 'copy', 'copies')} cannot be opened with this ring; they stay")
    for error in done.errors:
        complain(error)
    if not dry_run:
        say(f"{counted(done.rewritten.total(), 'copy', 'copies')} sealed anew with {done.current}.")
    for name in done.old:
        may = name in done.dispensable
        say(f"Key {name} {'may go, once every worker has the new ring' if may else 'is still needed'}.")

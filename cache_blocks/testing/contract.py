"""The contract that every tier fulfils, as a suite for pytest."""

# ruff: noqa: S101, PLR2004, D102 - a suite for pytest: assert says what must hold, a test's name what it shows

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Final
from uuid import uuid4

import pytest

from cache_blocks import codec
from cache_blocks.entry import Entry
from cache_blocks.errors import InvalidKeyError
from cache_blocks.testing.samples import HOSTILE_KEYS, KEY, entry_for
from cache_blocks.tiers.base import BackendTier, Tier

_CHILD_SECONDS: Final = 60

MakeTier = Callable[[str], Tier]
Plant = Callable[[str, bytes], None]


class TierContract:
    """What holds for every tier. A subclass gives the fixtures `make_tier` and `plant`.

    `make_tier(namespace)` returns a tier over one and the same backend; `plant(key, data)` puts bytes where the
    fixture `tier` keeps the envelope of a key, past the code under test.

    Attributes:
        keeps_manifest: Whether entries come back with their manifest.
        fences: Whether a write with a lower fence is refused; an object store leaves that to SQL's row.
        survives_fork: Whether a forked child may use the tier of its parent.
    """

    keeps_manifest: ClassVar[bool] = True
    fences: ClassVar[bool] = True
    survives_fork: ClassVar[bool] = True

    @pytest.fixture
    def tier(self, make_tier: MakeTier) -> Tier:
        """The tier under test, in a namespace of its own."""
        return make_tier(f"contract-{uuid4().hex}")

    def expected(self, entry: Entry) -> Entry:
        """Return what reading an entry gives."""
        return entry if self.keeps_manifest else replace(entry, manifest={})

    def entry(self, tier: Tier, key: str = KEY, value: Any = "a transcript", **changes: Any) -> Entry:
        """Return an entry of the tier's namespace."""
        return entry_for(key, value, namespace=tier.namespace, **changes)

    def test_absent_is_absent(self, tier: Tier) -> None:
        answer = tier.read([KEY])
        assert (dict(answer.entries), dict(answer.corrupt), dict(answer.elsewhere)) == ({}, {}, {})
        assert list(tier.keys()) == []

    def test_a_written_entry_comes_back_equal(self, tier: Tier) -> None:
        entry = self.entry(tier, tags=("recording:a", "sprache:Äöü-日本語"), blobs={"ab" * 32: 7})
        assert tier.write([entry]) == {KEY}
        assert tier.read([KEY]).entries == {KEY: self.expected(entry)}

    def test_many_keys_at_once(self, tier: Tier) -> None:
        entries = {f"transcript:{number}": self.entry(tier, f"transcript:{number}", number) for number in range(60)}
        assert tier.write(list(entries.values())) == set(entries)
        answer = tier.read([*entries, "transcript:absent"])
        assert answer.entries == {key: self.expected(entry) for key, entry in entries.items()}

    def test_nothing_asked_is_nothing_answered(self, tier: Tier) -> None:
        assert tier.write([]) == set()
        assert tier.read([]).entries == {}
        assert tier.delete([]) == 0

    def test_delete_counts_what_was_there(self, tier: Tier) -> None:
        tier.write([self.entry(tier, f"transcript:{name}") for name in "abc"])
        assert tier.delete(["transcript:a", "transcript:b", "transcript:absent"]) == 2
        assert set(tier.keys()) == {"transcript:c"}
        assert tier.delete(["transcript:a"]) == 0

    def test_keys_lists_exactly_what_is_there(self, tier: Tier) -> None:
        names = {f"{kind}:{number}" for kind in ("transcript", "search-results") for number in range(5)}
        tier.write([self.entry(tier, name) for name in names])
        assert sorted(tier.keys()) == sorted(names)

    def test_a_higher_fence_wins(self, tier: Tier) -> None:
        tier.write([self.entry(tier, value="old", fence=7)])
        newer = self.entry(tier, value="new", fence=8)
        assert tier.write([newer]) == {KEY}
        assert tier.read([KEY]).entries == {KEY: self.expected(newer)}

    def test_a_lower_fence_loses(self, tier: Tier) -> None:
        if not self.fences:
            pytest.skip("SQL's row says which copy counts")
        high, higher = 2**40, 2**40 + 1
        standing = self.entry(tier, value="computed later", fence=higher)
        tier.write([standing])
        assert tier.write([self.entry(tier, value="late writer", fence=high)]) == set()
        assert tier.read([KEY]).entries == {KEY: self.expected(standing)}

    def test_namespaces_do_not_see_each_other(self, tier: Tier, make_tier: MakeTier) -> None:
        other = make_tier(f"{tier.namespace[:50]}-other")
        tier.write([self.entry(tier, value="mine")])
        assert other.read([KEY]).entries == {}
        assert list(other.keys()) == []
        assert other.delete([KEY]) == 0
        assert set(tier.keys()) == {KEY}

    def test_large_payload(self, tier: Tier) -> None:
        entry = self.entry(tier, value=os.urandom(500_000).hex())
        tier.write([entry])
        assert tier.read([KEY]).entries == {KEY: self.expected(entry)}

    def test_a_damaged_copy_is_reported_removed_and_never_returned(self, tier: Tier, plant: Plant) -> None:
        whole = {f"transcript:{number}": b"" for number in range(12)}
        whole = {key: codec.pack(self.entry(tier, key, "x" * 50)) for key in whole}
        damaged = [_flipped(data, at * len(data) // 8) for at, data in enumerate(list(whole.values())[:8])]
        data = whole["transcript:8"]
        damaged += [data[:-1], data[:60], data[:3], b""]
        for key, bad in zip(whole, damaged, strict=True):
            plant(key, bad)
        answer = tier.read(list(whole))
        assert answer.entries == {}
        assert set(answer.corrupt) == set(whole)
        assert all(answer.corrupt.values()), "each has a reason"
        self.check_gone(tier, list(whole))

    def test_a_copy_of_another_key_or_namespace_is_corrupt(self, tier: Tier, plant: Plant) -> None:
        plant("transcript:a", codec.pack(self.entry(tier, "transcript:other")))
        plant("transcript:b", codec.pack(entry_for("transcript:b", namespace="another-namespace")))
        answer = tier.read(["transcript:a", "transcript:b"])
        assert answer.entries == {}
        assert set(answer.corrupt) == {"transcript:a", "transcript:b"}
        self.check_gone(tier, ["transcript:a", "transcript:b"])

    @pytest.mark.parametrize("version", [0, codec.VERSION + 1, 255])
    def test_a_copy_of_another_version_is_corrupt(self, tier: Tier, plant: Plant, version: int) -> None:
        data = codec.pack(self.entry(tier))
        plant(KEY, data[:4] + struct.pack("B", version) + data[5:])
        answer = tier.read([KEY])
        assert answer.entries == {}
        assert "version" in answer.corrupt[KEY]
        self.check_gone(tier, [KEY])

    def test_a_planted_pickle_is_never_loaded(self, tier: Tier, plant: Plant, tmp_path: Path) -> None:
        proof = tmp_path / "loaded"
        plant(KEY, pickle.dumps(_Touch(str(proof))))
        answer = tier.read([KEY])
        assert (dict(answer.entries), set(answer.corrupt)) == ({}, {KEY})
        assert not proof.exists()

    @pytest.mark.parametrize("operation", ["read", "delete", "write"])
    def test_hostile_keys_are_refused_before_any_io(
        self, tier: Tier, operation: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        touched: list[object] = []

        def touch(*arguments: object) -> Any:
            touched.append(arguments)

        for backend in (tier, *getattr(tier, "tiers", ())):
            if isinstance(backend, BackendTier):
                for hook in ("_fetch", "_store", "_remove"):
                    monkeypatch.setattr(backend, hook, touch)
        for key in HOSTILE_KEYS:
            what = self.entry(tier, key) if operation == "write" else key
            with pytest.raises(InvalidKeyError):
                getattr(tier, operation)([what])
        assert touched == []

    def test_writers_in_eight_threads(self, tier: Tier) -> None:
        start = threading.Barrier(8)

        def write(number: int) -> None:
            start.wait()
            tier.write([self.entry(tier, f"transcript:{number}", number)])
            tier.write([self.entry(tier, value=number, fence=number + 1)])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(8)))
        answer = tier.read([KEY, *(f"transcript:{number}" for number in range(8))])
        assert len(answer.entries) == 9
        if self.fences:
            assert answer.entries[KEY].fence == 8

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    def test_a_forked_child_reads_and_the_parent_goes_on(self, tier: Tier) -> None:
        if not self.survives_fork:
            pytest.skip("not meant to be shared with a forked child")
        entry = self.entry(tier)
        tier.write([entry])
        child = os.fork()
        if child == 0:  # pragma: no cover - not seen by the parent's measurement
            signal.alarm(_CHILD_SECONDS)
            status = 1
            try:
                status = 0 if tier.read([KEY]).entries == {KEY: self.expected(entry)} else 2
            except Exception:  # noqa: BLE001 - the parent learns of it by the status alone
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert tier.read([KEY]).entries == {KEY: self.expected(entry)}

    def test_it_can_be_used_after_close(self, tier: Tier) -> None:
        tier.write([self.entry(tier)])
        tier.close()
        assert set(tier.read([KEY]).entries) == {KEY}

    def test_ping_says_what_answers(self, tier: Tier) -> None:
        assert tier.ping()

    def check_gone(self, tier: Tier, keys: Sequence[str]) -> None:
        """Fail if anything is left of these keys."""
        answer = tier.read(keys)
        assert (dict(answer.entries), dict(answer.corrupt)) == ({}, {})
        assert not set(keys) & set(tier.keys())


class _Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self._path),)


def _flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 0x40]) + data[offset + 1 :]

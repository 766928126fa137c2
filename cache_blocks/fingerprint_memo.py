"""The digests of files and objects that have been read before, by their versions, kept between processes.

A SQLite file under ``CACHE_BLOCKS_HOME``, for one machine: inodes and devices mean nothing on another one. It is
opened for each call, so that threads and forks share nothing, and holds neither names nor addresses. Whoever can write
it can have any file taken for another: its folder is the user's own, and one that others may write is not used.
Whatever is wrong with it costs no more than reading the files again: it is logged once, and a damaged one made anew.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from blake3 import blake3

from cache_blocks import forking
from cache_blocks.errors import TierUnavailableError

logger = logging.getLogger("cache_blocks")

KEEP_DAYS: Final = 30
_TABLE: Final = (
    "CREATE TABLE memo (identity BLOB PRIMARY KEY, digest TEXT NOT NULL, since REAL NOT NULL, day INTEGER NOT NULL, "
    "proof BLOB NOT NULL) WITHOUT ROWID"
)
_SCHEMA: Final = (_TABLE, "CREATE INDEX memo_day ON memo (day)")
_AT_ONCE: Final = 900
"""Variables in one statement."""
_WAIT_SECONDS: Final = 1.0
_PAUSE_SECONDS: Final = 30.0
_DAY_SECONDS: Final = 86_400
_BULK: Final = 1_000
_PASSING: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PERM,
    }
)
"""What SQLite answers when not the file is damaged, but its place or its moment is wrong."""

_gate: Final = forking.Gate()

R = TypeVar("R")


class Known(NamedTuple):
    """What is known of a version.

    Attributes:
        digest: Digest of its bytes; empty if it has only been seen.
        since: When it was first seen, in seconds since the epoch.
    """

    digest: str
    since: float


class DigestMemo:
    """The file with what is known of versions; safe for threads and forks.

    Args:
        folder: Where the file is, and nothing else.
        writes: Whether anything is noted down; reading alone makes no file.
        max_rows: When there are more, those go that have not been asked for the longest time.
    """

    def __init__(self, folder: Path, *, writes: bool = True, max_rows: int = 1_000_000) -> None:
        self.path = folder / "digests.db"
        self._writes = writes
        self._max_rows = max_rows
        self._paused_until = 0.0
        self._told: set[str] = set()

    def recall(self, identities: Sequence[bytes]) -> dict[bytes, Known]:
        """Return what is known of versions, by their identities."""
        return self._run(lambda connection: self._recall(connection, identities), {}) if identities else {}

    def keep(self, known: Mapping[bytes, Known]) -> None:
        """Note what is known of versions."""
        if known and self._writes:
            self._run(lambda connection: self._keep(connection, known), None)

    def forget(self, digests: Iterable[str]) -> int:
        """Erase all versions with these digests; return how many there were.

        Raises:
            TierUnavailableError: The file cannot be changed now; they may still be in it.
        """
        if not self.path.exists():
            return 0
        try:
            with _gate.inside(), closing(self._connect()) as connection:
                return _forget(connection, list(digests))
        except sqlite3.Error as error:
            if not _is_passing(error):
                self._discard(error)
            if self.path.exists():
                raise TierUnavailableError("digest memo", f"{self.path}: {error}") from error
        except OSError as error:
            raise TierUnavailableError("digest memo", f"{self.path}: {error}") from error
        return 0

    def _run(self, work: Callable[[sqlite3.Connection], R], otherwise: R) -> R:
        if time.monotonic() < self._paused_until or not (self._writes or self.path.exists()):
            return otherwise
        try:
            with _gate.inside(), closing(self._connect()) as connection:
                return work(connection)
        except sqlite3.Error as error:
            if _is_passing(error) or not self._writes:
                self._pause(error)
            else:
                self._discard(error)
        except OSError as error:
            self._pause(error)
        return otherwise

    def _connect(self) -> sqlite3.Connection:
        self._check_place()
        connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
        try:
            self._prepare(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        for pragma in ("trusted_schema=OFF", "secure_delete=ON", "synchronous=NORMAL"):
            connection.execute(f"PRAGMA {pragma}")
        found = _schema(connection)
        if not found:
            connection.execute("PRAGMA journal_mode=WAL")
            self.path.chmod(0o600)
            connection.execute("BEGIN IMMEDIATE")
            for statement in _SCHEMA if not _schema(connection) else ():  # another process may have been faster
                connection.execute(statement)
            connection.execute("COMMIT")
        elif found != set(_SCHEMA):
            raise sqlite3.DatabaseError("its tables are not ours")

    def _check_place(self) -> None:
        """Make the folder; `OSError` if others could have written what is in it."""
        folder = self.path.parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for place in (folder, self.path):
            try:
                status = place.lstat()
            except FileNotFoundError:
                continue
            if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise PermissionError(f"{place} belongs to, or can be written by, others; remove it")
            if stat.S_ISLNK(status.st_mode) or stat.S_ISDIR(status.st_mode) != (place == folder):
                raise PermissionError(f"{place} is not ours; remove it")

    def _recall(self, connection: sqlite3.Connection, identities: Sequence[bytes]) -> dict[bytes, Known]:
        found: dict[bytes, Known] = {}
        old: list[bytes] = []
        today = _today()
        for some in _batches(identities):
            rows = connection.execute(
                f"SELECT identity, digest, since, day, proof FROM memo WHERE identity IN ({_marks(some)})",  # noqa: S608
                some,
            )
            for identity, digest, since, day, proof in rows:
                if proof == _proof(identity, digest, since):
                    found[identity] = Known(digest, since)
                    if day != today:
                        old.append(identity)
        if old and self._writes:
            asked = [(today, identity) for identity in old]
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("UPDATE memo SET day = ? WHERE identity = ?", asked)
            connection.execute("COMMIT")
        return found

    def _keep(self, connection: sqlite3.Connection, known: Mapping[bytes, Known]) -> None:
        today = _today()
        rows = [(identity, *one, today, _proof(identity, *one)) for identity, one in known.items()]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany("INSERT OR REPLACE INTO memo VALUES (?, ?, ?, ?, ?)", rows)
        if len(rows) >= _BULK or connection.execute("PRAGMA user_version").fetchone()[0] != today:
            self._prune(connection, today)
        connection.execute("COMMIT")

    def _prune(self, connection: sqlite3.Connection, today: int) -> None:
        """Drop what nobody has asked for lately; ``user_version`` tells on which day that was last done."""
        connection.execute("DELETE FROM memo WHERE day < ? OR day > ?", (today - KEEP_DAYS, today))
        surplus = connection.execute("SELECT count(*) FROM memo").fetchone()[0] - self._max_rows
        if surplus > 0:
            connection.execute(
                "DELETE FROM memo WHERE identity IN (SELECT identity FROM memo ORDER BY day LIMIT ?)", (surplus,)
            )
        connection.execute(f"PRAGMA user_version={today}")

    def _pause(self, error: Exception) -> None:
        self._paused_until = time.monotonic() + _PAUSE_SECONDS
        self._tell("cannot be used", error)

    def _discard(self, error: Exception) -> None:
        """Remove a damaged file; the next call makes a new one."""
        self._tell("is damaged and is made anew", error)
        try:
            for ending in ("", "-wal", "-shm"):
                Path(f"{self.path}{ending}").unlink(missing_ok=True)
        except OSError as failed:
            self._pause(failed)

    def _tell(self, what: str, error: Exception) -> None:
        if what not in self._told:
            self._told.add(what)
            logger.warning("the memo of digests %s %s (%s); unchanged files are read again", self.path, what, error)


def _forget(connection: sqlite3.Connection, digests: Sequence[str]) -> int:
    """Erase rows, and the pages of the log that still show them."""
    rows = 0
    connection.execute("BEGIN IMMEDIATE")
    for some in _batches(digests):
        rows += connection.execute(f"DELETE FROM memo WHERE digest IN ({_marks(some)})", some).rowcount  # noqa: S608
    connection.execute("COMMIT")
    if connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        raise TierUnavailableError("digest memo", "its log could not be emptied, another process is reading")
    return rows


def _is_passing(error: sqlite3.Error) -> bool:
    code: Any = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _PASSING


def _schema(connection: sqlite3.Connection) -> set[str]:
    return {str(sql) for (sql,) in connection.execute("SELECT sql FROM sqlite_master")}


def _proof(identity: bytes, digest: Any, since: Any) -> bytes:
    """Return what shows a row that the disk has changed, or that nobody has written like this."""
    return blake3(repr((identity, digest, since)).encode("utf-8", "surrogatepass")).digest(8)


def _today() -> int:
    return int(time.time() // _DAY_SECONDS)


def _batches(items: Sequence[Any]) -> Iterable[Sequence[Any]]:
    return (items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE))


def _marks(items: Sequence[Any]) -> str:
    return ", ".join("?" * len(items))

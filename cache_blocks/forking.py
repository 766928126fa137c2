"""What a fork must not copy as it is.

A fork copies one thread and the memory of all. Locks that the others held would stay so for ever in the child;
connections, leases and what is buffered are the parent's to use, to give back and to write; and what SQLite knows of
a file's locks is true in one process only. So locks are made free, objects forget what was their parent's, and a
fork waits until nobody is in the middle of what cannot be copied.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, Final, Protocol

logger = logging.getLogger("cache_blocks")

_PATIENCE_SECONDS: Final = 5.0


class ForgetsParent(Protocol):
    """Something that a child must not go on with as it is."""

    def forget_parent(self) -> None:
        """Be as new; leave what is the parent's alone."""


_order: Final = itertools.count()
_known: Final[weakref.WeakValueDictionary[int, ForgetsParent]] = weakref.WeakValueDictionary()
_locks: Final[weakref.WeakSet[Any]] = weakref.WeakSet()
_gates: Final[weakref.WeakSet[Gate]] = weakref.WeakSet()


def forget_parent_of(one: ForgetsParent) -> None:
    """Have ``forget_parent`` of an object called in every child, as long as it lives.

    What was made last forgets first: a cache opens its database after it was made, and drops it when it forgets.
    """
    _known[next(_order)] = one


def lock() -> threading.Lock:
    """Return a lock that is free in every child, whoever holds it in the parent; each lock of this package is one."""
    return _free_in_children(threading.Lock())


def rlock() -> threading.RLock:
    """Return the same for who may already hold it; who forks while holding it holds it in the child, too."""
    return _free_in_children(threading.RLock())


class Gate:
    """Where a fork waits until nobody is inside, and who comes meanwhile waits until it is over.

    A thread that forks inside does not wait for itself.

    Args:
        before: Done before a fork, while nobody is inside: closes what two processes must not share.
    """

    def __init__(self, before: Callable[[], object] | None = None) -> None:
        self._before = before
        self._inside: list[int] = []
        self._forking: set[int] = set()
        self._changed = threading.Condition()
        _gates.add(self)

    @contextmanager
    def inside(self) -> Generator[None]:
        """Be inside, once no fork is under way; who is inside already may come in again."""
        me = threading.get_ident()
        with self._changed:
            self._changed.wait_for(lambda: not self._forking or me in self._inside, _PATIENCE_SECONDS)
            self._inside.append(me)
        try:
            yield
        finally:
            with self._changed:
                self._inside.remove(me)
                self._changed.notify_all()

    def shut(self) -> None:
        """Let nobody in, and wait for those who are inside and do not fork themselves; not for ever."""
        with self._changed:
            self._forking.add(threading.get_ident())
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._forking.issuperset(self._inside), _PATIENCE_SECONDS):
                logger.warning("forked while another thread was at work in SQLite; the child may find it locked")
        if self._before is not None:
            self._before()

    def open(self) -> None:
        """Let in who waits."""
        with self._changed:
            self._forking.discard(threading.get_ident())
            self._changed.notify_all()

    def renew(self) -> None:
        """Be open in a child, with nobody inside but the thread that it has."""
        me = threading.get_ident()
        self._inside = [one for one in self._inside if one == me]
        self._forking = set()
        self._changed = threading.Condition()


def _free_in_children(made: Any) -> Any:
    _locks.add(made)
    return made


def _before_fork() -> None:
    for gate in list(_gates):
        gate.shut()


def _in_parent() -> None:
    for gate in list(_gates):
        gate.open()


def _in_child() -> None:
    for one in list(_locks):
        if not (hasattr(one, "_is_owned") and one._is_owned()):  # noqa: SLF001 - as `logging` and `threading` do with theirs
            one._at_fork_reinit()  # noqa: SLF001 - likewise
    for gate in list(_gates):
        gate.renew()
    for number in sorted(_known, reverse=True):
        try:
            if (known := _known.get(number)) is not None:
                known.forget_parent()
        except Exception:
            logger.exception("a forked child could not forget what was its parent's")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_in_parent, after_in_child=_in_child)

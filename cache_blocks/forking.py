"""What a forked child does before anything else: it forgets what was its parent's.

A fork copies one thread and the memory of all. Locks that the others held would stay so for ever; connections, leases
and what is buffered are the parent's to use, to give back and to write.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import Any, Final, Protocol


class ForgetsParent(Protocol):
    """Something that a child must not go on with as it is."""

    def forget_parent(self) -> None:
        """Be as new; leave what is the parent's alone."""


_order: Final = itertools.count()
_known: Final[weakref.WeakValueDictionary[int, ForgetsParent]] = weakref.WeakValueDictionary()
_locks: Final[weakref.WeakSet[Any]] = weakref.WeakSet()


def forget_parent_of(one: ForgetsParent) -> None:
    """Have ``forget_parent`` of an object called in every child, as long as it lives.

    What was made last forgets first: a cache opens its database after it was made, and drops it when it forgets.
    """
    _known[next(_order)] = one


def lock() -> threading.Lock:
    """Return a lock that is free in every child, whoever holds it in the parent; each lock of this package is one."""
    return _free_in_children(threading.Lock())


def rlock() -> threading.RLock:
    """Return the same for who may already hold it."""
    return _free_in_children(threading.RLock())


def _free_in_children(made: Any) -> Any:
    _locks.add(made)
    return made


def _after_fork() -> None:
    for one in list(_locks):
        one._at_fork_reinit()  # noqa: SLF001 - which `logging` and `concurrent.futures` do with theirs
    for number in sorted(_known, reverse=True):
        if (known := _known.get(number)) is not None:
            known.forget_parent()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

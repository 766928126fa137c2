"""After a private run no word, name, prompt or digest is found by who has no key; after an open one they all are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.private.conftest import PATIENT_NAME, STEM

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.private.conftest import Seen, Where

RUNS = pytest.mark.parametrize("where", ["servers", "embedded"])


@RUNS
@pytest.mark.timeout(900)
@pytest.mark.promise(
    "Of a private run no word, file name, prompt or digest is in any tier, log, event or artifact.",
    tries="the real pipeline over real servers; every byte of Redis (DUMP, RDB, AOF), PostgreSQL (rows, data files, "
    "WAL), S3, SQLite with its log, local files, logs, artifacts, Prefect's database is searched, LZ4 frames unpacked",
)
def test_nothing_of_a_private_run_is_found(run_and_look: Callable[[Where, bool], Seen], where: Where) -> None:
    seen = run_and_look(where, True)
    assert seen.hits == seen.lookups > 0, "it has to be cached, or there is nothing to find"
    assert not {place: found for place, found in seen.found.items() if found}


@RUNS
@pytest.mark.timeout(900)
def test_the_search_finds_them_when_the_run_was_open(run_and_look: Callable[[Where, bool], Seen], where: Where) -> None:
    seen = run_and_look(where, False)
    stores = ("Redis", "PostgreSQL", "S3") if where == "servers" else ("SQLite", "folder")
    for place in stores:
        assert "dashwood" in seen.found[place], f"no word is found in {place}"
        assert PATIENT_NAME.split()[0].lower() in seen.found[place], f"no prompt is found in {place}"
    for place in ("artifacts", "logs", "Prefect", stores[0]):
        assert STEM in seen.found[place], f"no file name is found in {place}"

"""What entries and events add up to is always what counting them would give, whoever writes, and how ever."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import hypothesis
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

import cache_blocks
from cache_blocks import TRANSCRIPT, CacheSettings, Outcome, TieredCache, events, tallies
from cache_blocks.database import Database
from cache_blocks.event_log import EventLog
from cache_blocks.events import CacheEvent, Origin, originating
from cache_blocks.maintenance import collect
from cache_blocks.schema import CacheTable, EntryRow, EntryTallyRow, EventRow, EventTallyRow, TagRow, table
from cache_blocks.testing import entry_for
from cache_blocks.tiers.sql import SqlTier

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

ENTRIES, TAGS, EVENTS = (table(row) for row in (EntryRow, TagRow, EventRow))
ENTRY_TALLY, EVENT_TALLY = table(EntryTallyRow), table(EventTallyRow)
KEYS = ("transcript:1", "transcript:2", "search-results:1")


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return cast("str", request.getfixturevalue("postgres_url"))
    return f"sqlite:///{tmp_path / 'cache.db'}"


@pytest.fixture
def database(url: str) -> Generator[Database]:
    database = Database(url, timeout_seconds=10)
    yield database
    database.close()


def sums(
    database: Database, rows: sa.Table, by: list[str], count: sa.ColumnElement[int], namespace: str
) -> dict[Any, Any]:
    """Return what rows of a namespace add up to, groups without any left out."""
    names = [name for name in ("stored_bytes", "blob_bytes", "compute_seconds", "seconds_saved") if name in rows.c]
    statement = sa.select(*(rows.c[name] for name in by), count, *(sa.func.sum(rows.c[name]) for name in names))
    statement = statement.where(rows.c.namespace == namespace)
    with database.read() as connection:
        found = connection.execute(statement.group_by(*(rows.c[name] for name in by))).all()
    return {
        tuple(row[: len(by)]): pytest.approx([float(each) for each in row[len(by) :]]) for row in found if row[len(by)]
    }


def check_tallies(database: Database, namespace: str = "default") -> None:
    """Assert that both tallies are what a scan gives."""
    by = ["namespace", "kind"]
    kept = sums(database, ENTRY_TALLY, by, sa.func.sum(ENTRY_TALLY.c.entries), namespace)
    assert kept == {key: each.expected for key, each in sums(database, ENTRIES, by, sa.func.count(), namespace).items()}
    by = ["namespace", "action", "kind", "outcome", "tier", "task", "flow"]
    kept = sums(database, EVENT_TALLY, by, sa.func.sum(EVENT_TALLY.c.events), namespace)
    assert kept == {key: each.expected for key, each in sums(database, EVENTS, by, sa.func.count(), namespace).items()}


class TallyMachine(RuleBasedStateMachine):
    """Everything that changes rows, in any order; after each step the tallies are what a scan gives."""

    database: Database

    def __init__(self) -> None:
        super().__init__()
        settings = CacheSettings(namespace=f"n{uuid4().hex}")
        self.cache = TieredCache(settings)
        self.cache.parts.database.close()
        self.tier = SqlTier(self.database, settings.namespace)
        vars(self.cache.parts.chain)["tiers"] = (self.tier,)
        object.__setattr__(self.cache.parts, "database", self.database)
        self.namespace = settings.namespace

    def teardown(self) -> None:
        self.cache.close()

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        """Overwriting, refused fences and one key twice in a batch among them."""
        drawn = st.tuples(
            st.sampled_from(KEYS), st.integers(1, 4), st.sets(st.sampled_from("ab")), st.text(max_size=9), st.booleans()
        )
        self.tier.write(
            [
                entry_for(
                    key, text, namespace=self.namespace, fence=fence, tags=sorted(tags), expires_in=-1 if old else 60
                )
                for key, fence, tags, text, old in data.draw(st.lists(drawn, min_size=1, max_size=5))
            ]
        )

    @rule(keys=st.sets(st.sampled_from(KEYS)))
    def delete(self, keys: set[str]) -> None:
        self.tier.delete(sorted(keys))

    @rule()
    def collect_what_has_expired(self) -> None:
        assert collect(self.cache).errors == []

    @rule(what=st.sampled_from([{"key": KEYS[0]}, {"kind": "transcript"}, {"tag": "a"}, {}]))
    def invalidate_and_collect(self, what: dict[str, str]) -> None:
        self.cache.invalidate(**what)
        collect(self.cache)

    @rule(size=st.integers(0, 100))
    def change_past_the_tier(self, size: int) -> None:
        with self.database.begin() as connection:
            connection.execute(sa.update(ENTRIES).where(ENTRIES.c.fence > 2).values(stored_bytes=size))

    @rule()
    def log(self) -> None:
        with originating(Origin(task="t", flow="f", deferred=False)):
            self.cache.record([CacheEvent(events.LOOKUP, "transcript", outcome="hit", seconds_saved=1.5)] * 3)

    @invariant()
    def tallies_are_exact(self) -> None:
        check_tallies(self.database, self.namespace)
        with self.database.read() as connection:
            counted = tallies.entries_under(connection, self.namespace, "tag:a")
            orphans = sa.select(TAGS.c.key).where(TAGS.c.key.not_in(sa.select(ENTRIES.c.key)))
            assert connection.execute(orphans).all() == []
            assert counted <= tallies.entries_under(connection, self.namespace, "all")


def run(database: Database, examples: int, **more: Any) -> None:
    class Machine(TallyMachine):
        pass

    Machine.database = database
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=15,
        deadline=None,
        database=None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.filter_too_much],
        **more,
    )
    run_state_machine_as_test(Machine, settings=settings)  # pyright: ignore[reportUnknownMemberType]


def test_in_any_story_the_tallies_are_what_a_scan_gives(database: Database) -> None:
    run(database, 15)


def test_the_story_finds_out_a_trigger_that_is_missing(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'cache.db'}")
    with database.begin() as connection:
        connection.exec_driver_sql("DROP TRIGGER cache_blocks_entry_added")
    with pytest.raises(AssertionError):
        run(database, 50, phases=[hypothesis.Phase.generate], derandomize=True)
    database.close()


def at_once(number: int, work: Callable[[int], None]) -> None:
    """Run work in threads that begin together, and raise what went wrong in any."""
    wrong: list[BaseException] = []
    barrier = threading.Barrier(number)

    def one(which: int) -> None:
        try:
            barrier.wait()
            work(which)
        except BaseException as error:  # noqa: BLE001 - raised below
            wrong.append(error)

    threads = [threading.Thread(target=one, args=(which,)) for which in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wrong:
        raise wrong[0]


def test_writers_at_once_and_folding_meanwhile_lose_nothing(database: Database) -> None:
    tier = SqlTier(database)

    def work(which: int) -> None:
        for step in range(12):
            keys = [f"transcript:{(which * 7 + step * 3 + number) % 40}" for number in range(8)]
            tier.write([entry_for(key, "x" * step, fence=step) for key in keys])
            tier.delete(keys[:2])
            if which == 0:
                tallies.fold(database, "default", tallies.entry_tally)

    at_once(6, work)
    check_tallies(database)


def test_folding_leaves_one_row_of_many_connections(postgres_url: str) -> None:
    for number in range(4):
        database = Database(postgres_url, timeout_seconds=10)
        SqlTier(database).write([entry_for(f"transcript:{number}")])
        database.close()
    database = Database(postgres_url, timeout_seconds=10)
    rows = sa.select(ENTRY_TALLY.c.entries)
    with database.read() as connection:
        assert connection.execute(rows).scalars().all() == [1, 1, 1, 1]
    tallies.fold(database, "default", tallies.entry_tally)
    with database.read() as connection:
        assert connection.execute(rows).scalars().all() == [4]
    database.close()


def test_a_day_is_known_when_its_events_have_gone(database: Database) -> None:
    log = EventLog(database, "default")
    log.record([CacheEvent(events.LOOKUP, "transcript", outcome=Outcome.HIT, seconds_saved=2.0)] * 5)
    log.flush()
    with database.begin() as connection:
        connection.execute(sa.delete(EVENTS))
    with database.read() as connection:
        kept = connection.execute(sa.select(EVENT_TALLY.c.events, EVENT_TALLY.c.seconds_saved)).all()
    assert [tuple(row) for row in kept] == [(5, 10.0)]


# Migrations


def upgrade(url: str, revision: str) -> None:
    """Bring a database to a revision, as an older release of the package did."""
    config = Config()
    config.set_main_option("script_location", f"{next(iter(cache_blocks.__path__))}/migrations")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    engine.dispose()


def fill_first_version(url: str) -> None:
    """Put three entries, two tags, a tag without an entry and four events into a database of revision 0001."""
    upgrade(url, "0001")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        for number, kind in enumerate(("transcript", "transcript", "search-results")):
            connection.execute(
                sa.text(
                    "INSERT INTO cache_blocks_entry VALUES "
                    "('default', :key, :kind, 't', 1, :at, 9e9, 2.5, 10, 5, 'sql', '[0, 0, 0]', '{}', NULL)"
                ),
                {"key": f"{kind}:{number}", "kind": kind, "at": 1000.0 + number},
            )
        for key in ("transcript:0", "search-results:2", "transcript:gone"):
            connection.execute(sa.text("INSERT INTO cache_blocks_tag VALUES ('default', 'x', :key)"), {"key": key})
        for number in range(4):
            connection.execute(
                sa.text(
                    "INSERT INTO cache_blocks_event VALUES (:id, 'default', :at, 'lookup', 'transcript', '', 'hit', "
                    "'sql', '', '', 't', '', '', 7, 0.5, 1.5)"
                ),
                {"id": str(number), "at": 86400.0 * 3 + number},
            )
    engine.dispose()


def test_an_older_database_is_upgraded_with_what_it_holds(url: str) -> None:
    fill_first_version(url)
    database = Database(url, timeout_seconds=10)
    with database.read() as connection:
        assert [tuple(row) for row in connection.execute(sa.select(TAGS).order_by(TAGS.c.key))] == [
            ("default", "search-results:2", "x", 1002.0),
            ("default", "transcript:0", "x", 1000.0),
        ]
        assert tallies.kinds(connection, "default") == ["search-results", "transcript"]
        assert tallies.entries_under(connection, "default", "kind:transcript") == 2
        assert connection.execute(sa.select(EVENT_TALLY.c.day, EVENT_TALLY.c.events)).all() == [(3, 4)]
    check_tallies(database)
    SqlTier(database).delete(["transcript:0"])
    check_tallies(database)
    database.close()


STARTING = """
import sys
from cache_blocks.database import Database
from cache_blocks.testing import entry_for
from cache_blocks.tiers.sql import SqlTier
sys.stdin.readline()
assert SqlTier(Database(sys.argv[1], timeout_seconds=10)).write([entry_for("transcript:new" + sys.argv[2])])
"""


@pytest.mark.parametrize("filled", [True, False], ids=["older", "new"])
def test_processes_that_start_at_once_upgrade_it_once(url: str, *, filled: bool) -> None:
    if filled:
        fill_first_version(url)
    processes = [
        subprocess.Popen([sys.executable, "-c", STARTING, url, str(number)], stdin=subprocess.PIPE)
        for number in range(3)
    ]
    for process in processes:
        assert process.stdin
        process.stdin.write(b"go\n")
        process.stdin.close()
    assert [process.wait() for process in processes] == [0, 0, 0]
    database = Database(url, timeout_seconds=10)
    with database.read() as connection:
        assert tallies.entries_under(connection, "default", "all") == 3 + 3 * filled
    check_tallies(database)
    database.close()


def test_the_migrations_lead_to_the_schema(database: Database) -> None:
    with database.read() as connection, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # indexes over expressions are not compared
        context = MigrationContext.configure(
            connection, opts={"version_table": "cache_blocks_schema", "compare_type": True}
        )
        assert compare_metadata(context, CacheTable.metadata) == []


def test_a_downgrade_takes_everything_away_again(url: str) -> None:
    upgrade(url, "0002")
    config = Config()
    config.set_main_option("script_location", f"{next(iter(cache_blocks.__path__))}/migrations")
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "0001")
        names = set(sa.inspect(connection).get_table_names())
    engine.dispose()
    assert {"cache_blocks_entry_tally", "cache_blocks_event_tally"}.isdisjoint(names)


def test_a_cache_without_a_scan_knows_how_many_entries_an_invalidation_concerns(cache_home: Path) -> None:
    cache = TieredCache(CacheSettings(home=cache_home))
    for number in range(3):
        cache.put(f"transcript:{number}", "x", kind=TRANSCRIPT, tags=("a",) if number else ())
    assert cache.invalidate(tag="a").entries == 2
    assert cache.invalidate(kind="transcript").entries == 3
    assert cache.invalidate().entries == 3
    cache.close()


def test_threads_may_make_databases_of_their_own_at_once(tmp_path: Path) -> None:
    """Alembic keeps what it works on in the module: two upgrades in one process would mix up their connections."""

    def work(which: int) -> None:
        for number in range(4):
            database = Database(f"sqlite:///{tmp_path / f'{which}-{number}.db'}", timeout_seconds=60)
            check_tallies(database)
            database.close()

    at_once(6, work)

"""Preferences of users: validated, stored in SQL, cached, and never served stale."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from tasks.database import Database, engine_for
from tasks.preferences import (
    LANGUAGES,
    MAX_TERM_CHARACTERS,
    MAX_TERMS,
    Preferences,
    forget_user,
    load_preferences,
    read_preferences,
    save_preferences,
    write_preferences,
)

ANN = Preferences(language="en", style="concise", vocabulary=("Dashwood", "k8s"))


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        return Database(engine_for(f"sqlite:///{tmp_path / 'pipeline.db'}"), "default")
    return Database(engine_for(request.getfixturevalue("postgres_url")), "default")


def test_what_is_stored_comes_back(database: Database) -> None:
    write_preferences(database, "ann", ANN)
    assert read_preferences(database, "ann") == ANN


def test_a_user_who_is_not_known_has_the_defaults(database: Database) -> None:
    assert read_preferences(database, "nobody") == Preferences(language=None, style="clean", vocabulary=())


def test_storing_again_replaces(database: Database) -> None:
    write_preferences(database, "ann", ANN)
    write_preferences(database, "ann", Preferences(style="verbatim"))
    assert read_preferences(database, "ann") == Preferences(style="verbatim")


def test_users_and_namespaces_are_kept_apart(database: Database) -> None:
    write_preferences(database, "ann", ANN)
    assert read_preferences(database, "Ann") == Preferences()
    assert read_preferences(Database(database.engine, "staging"), "ann") == Preferences()


def test_many_may_store_at_once(database: Database) -> None:
    barrier = threading.Barrier(6)

    def store(number: int) -> None:
        barrier.wait()
        write_preferences(database, "ann", Preferences(vocabulary=(f"term {number}",)))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(store, range(6)))
    assert read_preferences(database, "ann").vocabulary in {(f"term {number}",) for number in range(6)}


# --- what is valid ----------------------------------------------------------------------------------------


def test_equal_vocabularies_are_equal_preferences() -> None:
    assert Preferences(vocabulary=(" k8s", "Dashwood ", "New  York", "k8s", "")).vocabulary == (
        "Dashwood",
        "New York",
        "k8s",
    )
    assert len(Preferences(vocabulary=("K8s", "k8s")).vocabulary) == 1


def test_language_codes_are_folded() -> None:
    assert Preferences(language=" EN ").language == "en"


@pytest.mark.parametrize(
    "wrong,reason",
    [
        ({"language": "english"}, "unknown language 'english'"),
        ({"language": "xx"}, "unknown language"),
        ({"language": ""}, "unknown language"),
        ({"style": "shouting"}, "'verbatim', 'clean' or 'concise'"),
        ({"vocabulary": ["x"] * (MAX_TERMS + 1)}, f"at most {MAX_TERMS} items"),
        ({"vocabulary": ["x" * (MAX_TERM_CHARACTERS + 1)]}, f"at most {MAX_TERM_CHARACTERS}"),
        ({"vocabulary": ["a\0b"]}, "control characters"),
        ({"tone": "friendly"}, "Extra inputs"),
    ],
)
def test_what_cannot_be_preferred_is_refused_with_the_reason(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Preferences.model_validate(wrong)


@pytest.mark.parametrize("user", ["", " ann", "ann\n", "a\0", "a" * 129])
def test_a_name_that_names_nobody_is_refused(database: Database, user: str) -> None:
    with pytest.raises(ValueError, match="not a user's name"):
        write_preferences(database, user, ANN)
    with pytest.raises(ValueError, match="not a user's name"):
        read_preferences(database, user)


def test_the_languages_are_those_of_whisper() -> None:
    tokenizer = pytest.importorskip("faster_whisper.tokenizer")
    assert frozenset(tokenizer._LANGUAGE_CODES) == LANGUAGES


# --- through the cache ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("prefect_server")
def test_once_saved_nobody_is_served_the_old_preferences() -> None:
    assert load_preferences("ann") == Preferences()
    assert load_preferences("ann", return_state=True).name == "Cached"
    save_preferences("ann", ANN)
    assert load_preferences("ann") == ANN
    forget_user("ann")
    assert load_preferences("ann") == Preferences()


@pytest.mark.usefixtures("prefect_server")
def test_saving_leaves_other_users_cached() -> None:
    load_preferences("bob")
    save_preferences("ann", ANN)
    assert load_preferences("bob", return_state=True).name == "Cached"

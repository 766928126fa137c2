"""What a user prefers: language, style and the names and terms to spell right."""

import datetime as dt
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from sqlalchemy import JSON, Column, DateTime, MetaData, String, Table, delete, select

from cache_blocks import USER_PREFERENCES, TieredCache, cached_task
from tasks.database import Database, upsert
from tasks.enhancers.base import Style

_CODES = """
    af am ar as az ba be bg bn bo br bs ca cs cy da de el en es et eu fa fi fo fr gl gu ha haw he hi
    hr ht hu hy id is it ja jw ka kk km kn ko la lb ln lo lt lv mg mi mk ml mn mr ms mt my ne nl nn
    no oc pa pl ps pt ro ru sa sd si sk sl sn so sq sr su sv sw ta te tg th tk tl tr tt uk ur uz vi
    yi yo yue zh
"""
LANGUAGES = frozenset(_CODES.split())
"""Codes that Whisper models know."""

MAX_TERMS = 200
MAX_TERM_CHARACTERS = 80
MAX_USER_CHARACTERS = 128


def _check_language(code: str) -> str:
    folded = code.strip().casefold()
    if folded not in LANGUAGES:
        raise ValueError(f"unknown language {code!r}: give a code such as 'en' or 'de'")
    return folded


class Preferences(BaseModel):
    """One user's preferences; the defaults are those of a user who never set any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    language: Annotated[str, AfterValidator(_check_language)] | None = Field(
        default=None, description="Language of the recordings; absent means it is detected."
    )
    style: Style = Field(default="clean", description="How far enhancement may go.")
    vocabulary: tuple[str, ...] = Field(
        default=(),
        max_length=MAX_TERMS,
        description="Names and terms as they are spelled, sorted and without repeats.",
    )

    @field_validator("vocabulary")
    @classmethod
    def _normalise(cls, terms: tuple[str, ...]) -> tuple[str, ...]:
        """Bring equal vocabularies into one form, since the vocabulary is part of keys."""
        spelled = {term.casefold(): term for term in sorted(" ".join(term.split()) for term in terms) if term}
        for term in spelled.values():
            if len(term) > MAX_TERM_CHARACTERS:
                raise ValueError(f"a term of the vocabulary has {len(term)} characters; at most {MAX_TERM_CHARACTERS}")
            if not _is_printable(term):
                raise ValueError(f"the term {term!r} holds control characters")
        return tuple(sorted(spelled.values()))


METADATA = MetaData()

_PREFERENCES = Table(
    "pipeline_preferences",
    METADATA,
    Column("namespace", String(128), primary_key=True),
    Column("user_id", String(MAX_USER_CHARACTERS), primary_key=True),
    Column("preferences", JSON, nullable=False),
    Column("updated_at", DateTime(timezone=True), nullable=False),
)


def read_preferences(database: Database, user: str) -> Preferences:
    """Return what is stored for `user`, or the defaults.

    Raises:
        ValueError: `user` is not a usable name, or what is stored is no longer valid.
    """
    table = _PREFERENCES.c
    query = select(table.preferences).where(table.namespace == database.namespace, table.user_id == check_user(user))
    with database.reading(METADATA) as connection:
        stored: Any = connection.execute(query).scalar_one_or_none()
    return Preferences() if stored is None else Preferences.model_validate(stored)


def write_preferences(database: Database, user: str, preferences: Preferences) -> None:
    """Store `preferences` for `user`, whatever was there."""
    with database.writing(METADATA) as connection:
        upsert(
            connection,
            _PREFERENCES,
            {"namespace": database.namespace, "user_id": check_user(user)},
            {"preferences": preferences.model_dump(mode="json"), "updated_at": dt.datetime.now(dt.UTC)},
        )


def check_user(user: str) -> str:
    """Return `user` if it can name a user: 1 to 128 printable characters, no white space around them."""
    if not user or len(user) > MAX_USER_CHARACTERS or user != user.strip() or not _is_printable(user):
        raise ValueError(f"not a user's name: {user[:MAX_USER_CHARACTERS]!r}")
    return user


def user_tag(user: str) -> str:
    """Return the cache tag of everything that depends on this user's preferences."""
    return f"user:{check_user(user)}"


def _tag_of_call(arguments: dict[str, Any]) -> str:
    return user_tag(arguments["user"])


@cached_task(kind=USER_PREFERENCES, cache_version="1", cache_tags=(_tag_of_call,))
def load_preferences(user: str) -> Preferences:
    """Return the preferences of `user`; the defaults for a user who is not known.

    Raises:
        ValueError: `user` is not a usable name.
    """
    return read_preferences(Database.from_settings(), user)


def save_preferences(user: str, preferences: Preferences) -> None:
    """Store the preferences of `user`; once this has returned, nobody is served the old ones.

    The cache is told every time, changed or not: so calling again after a failure puts everything right.

    Raises:
        ValueError: `user` is not a usable name.
        InvalidationIncompleteError: they are stored, but a tier of the cache could not be told.
    """
    write_preferences(Database.from_settings(), user, preferences)
    TieredCache.from_settings().invalidate(tag=user_tag(user))


def forget_user(user: str) -> None:
    """Delete what is stored for `user`; who asks then gets the defaults."""
    database = Database.from_settings()
    table = _PREFERENCES.c
    with database.writing(METADATA) as connection:
        connection.execute(
            delete(_PREFERENCES).where(table.namespace == database.namespace, table.user_id == check_user(user))
        )
    TieredCache.from_settings().invalidate(tag=user_tag(user))


def _is_printable(text: str) -> bool:
    return not any(unicodedata.category(character).startswith("C") for character in text)

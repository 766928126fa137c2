"""What people type into a search box, made into a query that neither database can misread.

The language is that of web search: words, all of which must occur; ``"quoted phrases"``; ``-excluded`` words
and phrases; ``prefix*``. Everything else is punctuation. Only letters, digits and combining marks ever reach
a database's own query language, always quoted, so no operator of it can be smuggled in.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from tasks.errors import PipelineError

MAX_CHARACTERS = 500
MAX_TERMS = 32

_TERM = re.compile(r'(-)?(?:"([^"]*)(?:"|$)|([^\s"]+))')


class SearchQueryError(PipelineError, ValueError):
    """A search query that asks for nothing, or for too much; the message says which."""


@dataclass(frozen=True)
class Term:
    """Words that must follow each other; with `prefix`, the last one may go on."""

    words: tuple[str, ...]
    prefix: bool = False

    def as_fts5(self) -> str:
        """Return the term as a string of SQLite's FTS5 query syntax."""
        return f'"{" ".join(self.words)}"{" *" if self.prefix else ""}'

    def as_tsquery(self) -> str:
        """Return the term as an operand for PostgreSQL's to_tsquery."""
        *head, last = (f"'{word}'" for word in self.words)
        return f"({' <-> '.join([*head, last + (':*' if self.prefix else '')])})"


@dataclass(frozen=True)
class Query:
    """All of `required` and none of `excluded`."""

    required: tuple[Term, ...]
    excluded: tuple[Term, ...] = ()

    def as_fts5(self) -> str:
        """Return the query in SQLite's FTS5 syntax."""
        wanted = " AND ".join(term.as_fts5() for term in self.required)
        if not self.excluded:
            return wanted
        return f"({wanted}) NOT ({' OR '.join(term.as_fts5() for term in self.excluded)})"

    def as_tsquery(self) -> str:
        """Return the query for PostgreSQL's to_tsquery."""
        wanted = [term.as_tsquery() for term in self.required]
        return " & ".join(wanted + [f"!{term.as_tsquery()}" for term in self.excluded])

    @property
    def terms(self) -> tuple[Term, ...]:
        """What to look for within a transcript that matched."""
        return self.required

    @property
    def words(self) -> tuple[Term, ...]:
        """The same by single words, for a phrase that runs over the end of a segment."""
        return tuple(
            Term((word,), prefix=term.prefix and word is term.words[-1])
            for term in self.required
            for word in term.words
        )


def any_as_fts5(terms: tuple[Term, ...]) -> str:
    """Return "any of these" in SQLite's FTS5 syntax."""
    return " OR ".join(term.as_fts5() for term in terms)


def any_as_tsquery(terms: tuple[Term, ...]) -> str:
    """Return "any of these" for PostgreSQL's to_tsquery."""
    return " | ".join(term.as_tsquery() for term in terms)


def parse_query(typed: str) -> Query:
    """Return what `typed` asks for.

    Raises:
        SearchQueryError: there is nothing to look for (no words, or only excluded ones), or it is too long.
    """
    if len(typed) > MAX_CHARACTERS:
        raise SearchQueryError(f"the query has {len(typed)} characters; at most {MAX_CHARACTERS}")
    required: list[Term] = []
    excluded: list[Term] = []
    for minus, phrase, bare in _TERM.findall(unicodedata.normalize("NFC", typed)):
        if words := split_words(phrase or bare):
            term = Term(words, prefix=bare.endswith("*"))
            (excluded if minus else required).append(term)
    if len(required) + len(excluded) > MAX_TERMS:
        raise SearchQueryError(f"the query has {len(required) + len(excluded)} terms; at most {MAX_TERMS}")
    if not required:
        msg = "the query only excludes" if excluded else "the query has no word to look for"
        raise SearchQueryError(f'{msg}; give a word, a "quoted phrase" or a prefix*')
    return Query(tuple(required), tuple(excluded))


def split_words(text: str) -> tuple[str, ...]:
    """Return the runs of letters, digits and marks in `text`."""
    return tuple("".join(c if unicodedata.category(c)[0] in "LNM" else " " for c in text).split())

"""Writing to the index and asking it."""

import datetime as dt
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection, bindparam, delete, insert, select, text, update

from tasks.database import Database, upsert
from tasks.fulltext.query import Query, Term, any_as_fts5, any_as_tsquery
from tasks.fulltext.tables import METADATA, SEGMENTS, TRANSCRIPTS
from tasks.transcript import Transcript

_BATCH = 500
MAX_SEGMENTS = 20
"""Matching segments given per hit."""

_MATCHES = {
    "sqlite": """
        SELECT t.id, t.recording, t.name, -bm25(pipeline_transcripts_fts, 4.0, 1.0) AS score,
               snippet(pipeline_transcripts_fts, 1, '**', '**', '…', 24) AS snippet
        FROM pipeline_transcripts_fts JOIN pipeline_transcripts t ON t.id = pipeline_transcripts_fts.rowid
        WHERE pipeline_transcripts_fts MATCH :query AND t.namespace = :namespace
        ORDER BY score DESC, t.name, t.recording LIMIT :limit""",
    # Headlines are slow, so they are made for the rows that are returned and no others.
    "postgresql": """
        SELECT id, recording, name, score, ts_headline('pipeline_english', body, wanted,
               'StartSel=**, StopSel=**, MaxWords=24, MinWords=8, MaxFragments=1') AS snippet
        FROM (SELECT t.*, wanted, ts_rank_cd(t.document, wanted, 1) AS score
              FROM pipeline_transcripts t, to_tsquery('pipeline_english', :query) wanted
              WHERE t.document @@ wanted AND t.namespace = :namespace
              ORDER BY score DESC, t.name, t.recording LIMIT :limit) best
        ORDER BY score DESC, name, recording""",
}
_MATCHING_SEGMENTS = {
    "sqlite": """
        SELECT s.transcript_id, s.start_seconds, s.end_seconds, s.body
        FROM pipeline_segments_fts JOIN pipeline_segments s ON s.id = pipeline_segments_fts.rowid
        WHERE pipeline_segments_fts MATCH :query AND s.transcript_id IN :ids
        ORDER BY s.transcript_id, s.position""",
    "postgresql": """
        SELECT s.transcript_id, s.start_seconds, s.end_seconds, s.body FROM pipeline_segments s
        WHERE s.document @@ to_tsquery('pipeline_english', :query) AND s.transcript_id IN :ids
        ORDER BY s.transcript_id, s.position""",
}


class MatchingSegment(BaseModel):
    """A part of a recording in which something that was looked for is said."""

    model_config = ConfigDict(frozen=True)

    start: float = Field(description="Seconds from the beginning of the audio.")
    end: float
    text: str


class SearchHit(BaseModel):
    """A recording that matches a query."""

    model_config = ConfigDict(frozen=True)

    recording: str = Field(description="Digest of the recording.")
    name: str = Field(description="Name of its file.")
    score: float = Field(description="Higher is better; to be compared within one answer only.")
    snippet: str = Field(description="An excerpt, with what matched between two pairs of asterisks.")
    segments: list[MatchingSegment] = Field(description="Where it is said, in order; the first twenty.")


@dataclass(frozen=True)
class IndexedTranscripts:
    """What the index held of some recordings at one moment.

    Attributes:
        digests: Digest of each recording's indexed content, of which readers have been told.
    """

    digests: Mapping[str, str]

    def has(self, recording: str, name: str, transcript: Transcript) -> bool:
        """Whether this very transcript was indexed under this name, so that adding it would change nothing."""
        return self.digests.get(recording) == _digest(name, transcript)


@dataclass(frozen=True)
class TranscriptIndex:
    """The full-text index of one namespace."""

    database: Database

    def add(self, recording: str, name: str, transcript: Transcript) -> bool:
        """Put the transcript of `recording` into the index, in place of an earlier one.

        Returns:
            Whether readers have to be told: the content is new, or whoever wrote it did not get as far as
            `announce`. Adding the same again changes nothing.
        """
        digest = _digest(name, transcript)
        if (found := self._state(recording)) and found[0] == digest:
            return not found[1]
        key = {"namespace": self.database.namespace, "recording": recording}
        values = {
            "name": _storable(name),
            "body": _storable(transcript.text),
            "digest": digest,
            "announced": False,
            "indexed_at": dt.datetime.now(dt.UTC),
        }
        with self.database.writing(METADATA) as connection:
            row_id = upsert(connection, TRANSCRIPTS, key, values)
            connection.execute(delete(SEGMENTS).where(SEGMENTS.c.transcript_id == row_id))
            if rows := _segment_rows(row_id, transcript):
                connection.execute(insert(SEGMENTS), rows)
        return True

    def holdings(self, recordings: Sequence[str]) -> IndexedTranscripts:
        """Return what the index holds of these recordings, at the cost of a query for every 500."""
        found: dict[str, str] = {}
        with self.database.reading(METADATA) as connection:
            for start in range(0, len(recordings), _BATCH):
                query = select(TRANSCRIPTS.c.recording, TRANSCRIPTS.c.digest).where(
                    TRANSCRIPTS.c.namespace == self.database.namespace,
                    TRANSCRIPTS.c.recording.in_(recordings[start : start + _BATCH]),
                    TRANSCRIPTS.c.announced,
                )
                found |= {row[0]: row[1] for row in connection.execute(query)}
        return IndexedTranscripts(found)

    def announce(self, recording: str, name: str, transcript: Transcript) -> None:
        """Note that readers have been told of this very content."""
        same = TRANSCRIPTS.c.digest == _digest(name, transcript)
        with self.database.writing(METADATA) as connection:
            connection.execute(update(TRANSCRIPTS).where(self._is(recording), same).values(announced=True))

    def remove(self, recording: str) -> bool:
        """Delete what the index holds of `recording`; return whether there was anything.

        In SQLite the words are gone from the file when this returns. PostgreSQL keeps deleted rows on disk
        until it vacuums the tables.
        """
        ids = select(TRANSCRIPTS.c.id).where(self._is(recording)).scalar_subquery()
        with self.database.writing(METADATA) as connection:
            connection.execute(delete(SEGMENTS).where(SEGMENTS.c.transcript_id == ids))
            removed = connection.execute(delete(TRANSCRIPTS).where(self._is(recording))).rowcount > 0
            if removed and not self.database.is_postgres:
                # FTS5 only marks words as deleted until it merges the parts of its index.
                for table in (TRANSCRIPTS, SEGMENTS):
                    index = f"{table.name}_fts"
                    connection.execute(text(f"INSERT INTO {index}({index}) VALUES ('optimize')"))  # noqa: S608
        if removed:
            self.database.truncate_log()
        return removed

    def search(self, query: Query, limit: int) -> list[SearchHit]:
        """Return the `limit` transcripts that match best, best first."""
        asked = query.as_tsquery() if self.database.is_postgres else query.as_fts5()
        parameters = {"query": asked, "namespace": self.database.namespace, "limit": limit}
        with self.database.reading(METADATA) as connection:
            rows = connection.execute(text(_MATCHES[connection.dialect.name]), parameters).all()
            ids = [row.id for row in rows]
            segments = _segments(connection, query.terms, ids)
            segments |= _segments(connection, query.words, [found for found in ids if found not in segments])
        return [
            SearchHit(
                recording=row.recording,
                name=row.name,
                score=row.score,
                snippet=row.snippet,
                segments=segments.get(row.id, [])[:MAX_SEGMENTS],
            )
            for row in rows
        ]

    def _is(self, recording: str) -> Any:  # SQLAlchemy's own expression type
        return (TRANSCRIPTS.c.namespace == self.database.namespace) & (TRANSCRIPTS.c.recording == recording)

    def _state(self, recording: str) -> tuple[str, bool] | None:
        query = select(TRANSCRIPTS.c.digest, TRANSCRIPTS.c.announced).where(self._is(recording))
        with self.database.reading(METADATA) as connection:
            row = connection.execute(query).one_or_none()
        return (row[0], row[1]) if row else None


def _segments(connection: Connection, terms: tuple[Term, ...], ids: list[int]) -> dict[int, list[MatchingSegment]]:
    """Return, for those of `ids` that have any, the segments in which one of `terms` is said."""
    if not ids:
        return {}
    dialect = connection.dialect.name
    asked = any_as_tsquery(terms) if dialect == "postgresql" else any_as_fts5(terms)
    statement = text(_MATCHING_SEGMENTS[dialect]).bindparams(bindparam("ids", expanding=True))
    found: dict[int, list[MatchingSegment]] = {}
    for row in connection.execute(statement, {"query": asked, "ids": ids}):
        segment = MatchingSegment(start=row.start_seconds, end=row.end_seconds, text=row.body)
        found.setdefault(row.transcript_id, []).append(segment)
    return found


def _segment_rows(row_id: int, transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {
            "transcript_id": row_id,
            "position": position,
            "start_seconds": segment.start,
            "end_seconds": segment.end,
            "body": _storable(segment.text.strip()),
        }
        for position, segment in enumerate(transcript.segments)
    ]


def _digest(name: str, transcript: Transcript) -> str:
    segments = [(segment.start, segment.end, segment.text) for segment in transcript.segments]
    content = json.dumps([name, transcript.text, segments]).encode()
    return hashlib.blake2b(content, digest_size=32).hexdigest()


def _storable(value: str) -> str:
    """Return text that both databases take: no NUL, which PostgreSQL refuses, and no unpaired surrogates."""
    return value.replace("\0", " ").encode("utf-8", "replace").decode()

"""Full-text search over the finished transcripts, in the database that the cache uses.

Whole recordings are ranked (BM25 in SQLite, cover density in PostgreSQL), so that the words of a query may be
said minutes apart; each hit says in which segments they are.
"""

from collections.abc import Sequence

from cache_blocks import SEARCH_RESULTS, TieredCache, cached_task
from tasks.database import Database
from tasks.fulltext.index import IndexedTranscripts, MatchingSegment, SearchHit, TranscriptIndex
from tasks.fulltext.query import SearchQueryError, parse_query
from tasks.naming import is_private
from tasks.transcript import Transcript

__all__ = [
    "IndexedTranscripts",
    "MatchingSegment",
    "SearchHit",
    "SearchQueryError",
    "index_transcript",
    "indexed_transcripts",
    "remove_recording",
    "search_transcripts",
]

MAX_HITS = 100


@cached_task(kind=SEARCH_RESULTS, cache_version="1")
def search_transcripts(query: str, limit: int = 10) -> list[SearchHit]:
    """Return the recordings that match `query`, best first.

    Args:
        query: words that must all occur, ``"quoted phrases"``, ``-excluded`` terms and ``prefix*``.
        limit: how many hits at most, 1 to 100.

    Raises:
        SearchQueryError: the query asks for nothing or is too long, `limit` is out of range, or the cache is told that
            everything is private: then nothing is indexed.
    """
    if is_private():
        raise SearchQueryError(
            "CACHE_BLOCKS_PRIVATE is set, so that nothing is indexed: an index holds the words in clear"
        )
    if not 1 <= limit <= MAX_HITS:
        raise SearchQueryError(f"limit is {limit}; 1 to {MAX_HITS} hits can be asked for")
    return _index().search(parse_query(query), limit)


def index_transcript(recording: str, name: str, transcript: Transcript) -> bool:
    """Make a transcript findable; return whether anything changed.

    Cached search results are invalidated when it did, and only then. A process that dies in between leaves
    that to whoever indexes the recording next. When the cache is told that everything is private, nothing is
    indexed, because an index holds the words in clear.

    Args:
        recording: digest of the recording.
        name: what people know it by.
        transcript: what is said in it; takes the place of an earlier one.

    Raises:
        InvalidationIncompleteError: it is indexed, but a tier of the cache could not be told.
    """
    if is_private():
        return False
    index = _index()
    if not index.add(recording, name, transcript):
        return False
    TieredCache.from_settings().invalidate(kind=SEARCH_RESULTS)
    index.announce(recording, name, transcript)
    return True


def indexed_transcripts(recordings: Sequence[str]) -> IndexedTranscripts:
    """Return what the index holds of these recordings, for a batch to see at once what it need not index again.

    Args:
        recordings: Digests of the recordings.
    """
    if is_private():
        return IndexedTranscripts({})
    return _index().holdings(recordings)


def remove_recording(recording: str) -> bool:
    """Remove a recording from the index and from cached search results; return whether the index had it.

    The cache is told in any case, so calling again after a failure puts everything right.

    Raises:
        InvalidationIncompleteError: it is removed, but a tier of the cache could not be told.
    """
    removed = _index().remove(recording)
    TieredCache.from_settings().invalidate(kind=SEARCH_RESULTS)
    return removed


def _index() -> TranscriptIndex:
    return TranscriptIndex(Database.from_settings())

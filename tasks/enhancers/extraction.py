"""Sentences, keywords and an extractive summary: deterministic, and every word is the text's own."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_KEYWORDS = 10
MAX_KEYWORD_WORDS = 3
SIMILARITY_LIMIT = 0.7
"""Cosine above which a sentence says what a chosen one has already said."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # noqa: RUF001  # the typographic apostrophe is meant

Vector = dict[str, float]


class _KeywordExtractor(Protocol):
    """The part of yake, which has no type annotations, that is used here."""

    def extract_keywords(self, text: str, /) -> list[tuple[str, float]]: ...


def split_sentences(text: str) -> list[str]:
    """Return the sentences of `text` in order, found with nupunkt's bundled Punkt model."""
    import nupunkt  # an extra, imported where it is used

    found = cast("Iterable[str]", nupunkt.sent_tokenize(text))
    return [stripped for sentence in found if (stripped := sentence.strip())]


def summarise(sentences: Sequence[str], limit: int = 3) -> str:
    """Return up to `limit` sentences, in their order, that are closest to what the whole text is about.

    Centroid-based summarisation (Radev et al., "Centroid-based summarization of multiple documents",
    Information Processing & Management 40, 2004): sentences are TF-ISF vectors, the centroid is their sum,
    and sentences are taken by cosine to it. A sentence too similar to one already taken is passed over, as in
    Rossiello et al. (MultiLing 2017). Linear in the length of the text; ties go to the earlier sentence.
    """
    if len(sentences) <= limit:
        return " ".join(sentences)
    counts = [Counter(_terms(sentence)) for sentence in sentences]
    frequency = Counter(term for count in counts for term in count)
    vectors = [{term: n * math.log(len(sentences) / frequency[term]) for term, n in count.items()} for count in counts]
    centroid: Vector = {}
    for vector in vectors:
        for term, weight in vector.items():
            centroid[term] = centroid.get(term, 0.0) + weight
    # Rounded, so that the last bits of a sum cannot decide the order.
    scores = [round(_cosine(vector, centroid), 9) for vector in vectors]
    chosen: list[int] = []
    for index in sorted(range(len(sentences)), key=lambda i: (-scores[i], i)):
        if all(_cosine(vectors[index], vectors[other]) <= SIMILARITY_LIMIT for other in chosen):
            chosen.append(index)
        if len(chosen) == limit:
            break
    return " ".join(sentences[index] for index in sorted(chosen))


def find_keywords(text: str, language: str | None, vocabulary: Sequence[str] = ()) -> list[str]:
    """Return up to `MAX_KEYWORDS` phrases of `text`, most important first.

    Terms of the user's vocabulary that were said come first, by number of mentions; the others are found with
    YAKE (Campos et al., "YAKE! Keyword extraction from single documents using multiple local features",
    Information Sciences 509, 2020). Phrases that do not stand in the text as they are (YAKE joins words over
    an apostrophe) are left out, and so are those within a better one.
    """
    said = [(len(_mentions(term, text)), term) for term in dict.fromkeys(vocabulary) if term.strip()]
    keywords = [term for n, term in sorted(said, key=lambda item: (-item[0], item[1])) if n]
    found = _extractor((language or "en").casefold()[:2]).extract_keywords(text)
    for _, phrase in sorted((round(float(score), 9), phrase) for phrase, score in found):
        if _mentions(phrase, text) and not any(_mentions(phrase, keyword) for keyword in keywords):
            keywords.append(phrase)
    return keywords[:MAX_KEYWORDS]


def _extractor(language: str) -> _KeywordExtractor:
    import yake  # an extra that takes 0.4 s to import

    make = cast("functools.partial[_KeywordExtractor]", yake.KeywordExtractor)
    return make(lan=language, n=MAX_KEYWORD_WORDS, top=3 * MAX_KEYWORDS)


def _mentions(phrase: str, text: str) -> list[str]:
    return re.findall(rf"(?<!\w){re.escape(phrase)}(?!\w)", text, re.IGNORECASE)


def _terms(sentence: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(sentence)]


def _cosine(a: Vector, b: Vector) -> float:
    norm = math.hypot(*a.values()) * math.hypot(*b.values())
    if not norm:
        return 0.0
    smaller, larger = sorted((a, b), key=len)
    return math.fsum(weight * larger.get(term, 0.0) for term, weight in smaller.items()) / norm

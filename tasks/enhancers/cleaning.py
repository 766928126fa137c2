"""Removing hesitations, discourse markers and stutters from transcribed speech.

Plain rules on words, applied until nothing changes: cleaning twice is cleaning once, and every word of the
result is a word of the input, in the input's order. What a rule cannot tell from meaning ("gave her her
book", "had had", "5 mm") is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from tasks.enhancers.base import Style

# By language, since one language's hesitation is another's word: "um" is German for "around", "er" for "he".
HESITATIONS: dict[str, frozenset[str]] = {
    "de": frozenset({"äh", "ähm", "öh", "öhm", "hm", "hmm"}),
    "en": frozenset({"um", "umm", "ummm", "uh", "uhh", "uhm", "er", "erm", "hm", "hmm", "hmmm", "mmm"}),
    "fr": frozenset({"euh", "heu", "hum", "hmm"}),
    "it": frozenset({"ehm", "uhm", "mmm", "hmm"}),
    "nl": frozenset({"eh", "ehm", "uhm", "hmm"}),
}

# Removed only where punctuation sets them off, since all of them are ordinary words elsewhere.
MARKERS = (("you", "know"), ("i", "mean"), ("like",))
CONCISE_MARKERS = (
    *(("sort", "of"), ("kind", "of"), ("to", "be", "honest"), ("at", "the", "end", "of", "the", "day")),
    *(("well",), ("so",), ("okay",), ("ok",), ("right",), ("anyway",)),
    *(("actually",), ("basically",), ("honestly",), ("literally",)),
)

# Words that people repeat when they stumble and that hardly ever follow themselves in a well-formed sentence.
STUTTERED = (
    frozenset({"the", "a", "an", "i", "we", "they", "he", "she", "my", "your", "our", "their", "and", "but", "or"})
    | {
        "of",
        "to",
        "in",
        "on",
        "at",
        "for",
        "from",
        "with",
        "by",
        "if",
        "when",
        "what",
        "where",
        "how",
        "are",
        "were",
    }
    | {
        "will",
        "would",
        "can",
        "could",
        "should",
        "it's",
        "i'm",
        "we're",
        "they're",
        "there's",
        "he's",
        "she's",
    }
)
PHRASE_STARTS = (STUTTERED | {"it", "you", "that", "this", "is", "was", "so"}) - {"and", "or", "by"}
LONGEST_PHRASE = 4

_TOKEN = re.compile(r"(\W*)(.*?)(\W*)", re.DOTALL)
_TERMINAL = re.compile(r"[.?!…]")
_SEPARATORS = re.compile(r"[.?!…,;:\-\u2013\u2014]+")
# What stands after a word that somebody broke off: nothing, a comma, a dash, dots.
_SOFT_TAILS = frozenset({"", ",", "-", "\u2013", "\u2014", "--", "...", "…"})


@dataclass(frozen=True)
class Word:
    """One whitespace-separated token: punctuation before, the word, punctuation after."""

    lead: str
    core: str
    tail: str

    @classmethod
    def parse(cls, token: str) -> Word:
        """Return `token` taken apart."""
        match = _TOKEN.fullmatch(token)
        if match is None:  # the pattern matches every string
            raise AssertionError(token)
        return cls(*match.groups())

    @property
    def folded(self) -> str:
        """The word as it is compared: without case, with a plain apostrophe."""
        return self.core.replace("\u2019", "'").casefold()

    @property
    def ends_sentence(self) -> bool:
        """Whether a sentence closes with this word."""
        return self.tail not in _SOFT_TAILS and bool(_TERMINAL.search(self.tail or self.lead))

    def __str__(self) -> str:
        return self.lead + self.core + self.tail


def clean(text: str, style: Style, language: str | None, keep: Collection[str] = ()) -> str:
    """Return `text` without the marks of spontaneous speech that `style` does away with.

    Args:
        text: transcribed speech.
        style: ``verbatim`` only tidies white space; ``clean`` removes hesitations, discourse markers and
            stutters; ``concise`` removes more discourse markers.
        language: ISO 639-1 code. Stutters and markers are known for English only; a language without rules
            is left as it is.
        keep: terms whose words are never taken for hesitations.
    """
    tokens = text.split()
    code = (language or "").casefold().split("-")[0]
    if style == "verbatim":
        return " ".join(tokens)
    kept = {word.casefold() for term in keep for word in term.split()}
    hesitations = HESITATIONS.get(code, frozenset()) - kept
    markers: tuple[tuple[str, ...], ...] = ()
    if code == "en":
        markers = MARKERS if style == "clean" else MARKERS + CONCISE_MARKERS
    while True:
        words = _drop_fillers([Word.parse(token) for token in tokens], hesitations, markers)
        if code == "en":
            words = _drop_repeats(words)
        cleaned = " ".join(map(str, words)).split()
        if cleaned == tokens:
            return " ".join(tokens)
        tokens = cleaned


def respell(text: str, vocabulary: Iterable[str]) -> str:
    """Return `text` with the letter case of every term in `vocabulary` as the vocabulary has it."""
    terms = {" ".join(term.split()).casefold(): " ".join(term.split()) for term in vocabulary}
    terms.pop("", None)
    if not terms:
        return text
    longest_first = sorted(terms.values(), key=lambda term: (-len(term), term))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)", re.IGNORECASE)
    return pattern.sub(lambda match: terms.get(match.group().casefold(), match.group()), text)


def _drop_fillers(
    words: Sequence[Word], hesitations: Collection[str], markers: Sequence[tuple[str, ...]]
) -> list[Word]:
    kept: list[Word] = []
    rest = list(words)
    at = 0
    while at < len(rest):
        length = _filler_length(kept, rest, at, hesitations, markers)
        if length:
            _join_around(kept, rest[at : at + length], rest, at + length, strip_comma=True)
            at += length
        else:
            kept.append(rest[at])
            at += 1
    return kept


def _filler_length(
    kept: Sequence[Word],
    rest: Sequence[Word],
    at: int,
    hesitations: Collection[str],
    markers: Sequence[tuple[str, ...]],
) -> int:
    """Number of words from `at` on that are a filler; 0 for none. `kept` is what stands before."""
    word = rest[at]
    is_acronym = len(word.core) > 1 and word.core.isupper()
    if word.folded in hesitations and not is_acronym:
        return 1
    if kept and not (kept[-1].ends_sentence or kept[-1].tail == ","):
        return 0
    for marker in markers:
        phrase = rest[at : at + len(marker)]
        if tuple(item.folded for item in phrase) != marker or any(item.tail for item in phrase[:-1]):
            continue
        ends_clause = bool(kept) and kept[-1].tail == "," and phrase[-1].tail in {".", "?", "!"}
        if phrase[-1].tail == "," or ends_clause:
            return len(marker)
    return 0


def _drop_repeats(words: Sequence[Word]) -> list[Word]:
    kept: list[Word] = []
    rest = list(words)
    at = 0
    while at < len(rest):
        length = next((n for n in range(LONGEST_PHRASE, 0, -1) if _is_repeated(rest, at, n)), 0)
        if length:
            _join_around(kept, rest[at : at + length], rest, at + length, strip_comma=False)
            at += length
        else:
            kept.append(rest[at])
            at += 1
    return kept


def _is_repeated(words: Sequence[Word], at: int, length: int) -> bool:
    """Whether the `length` words from `at` on are said again right after."""
    first, second = words[at : at + length], words[at + length : at + 2 * length]
    if len(second) < length or first[0].folded not in (STUTTERED if length == 1 else PHRASE_STARTS):
        return False
    same = all(a.folded == b.folded and a.core for a, b in zip(first, second, strict=True))
    runs_on = all(word.tail in _SOFT_TAILS for word in first) and not any(word.lead for word in second)
    return same and runs_on


def _join_around(
    kept: list[Word], dropped: Sequence[Word], rest: list[Word], following: int, *, strip_comma: bool
) -> None:
    """Mend the text around `dropped`: hand on its capital, closing punctuation, quotes and brackets."""
    tail = dropped[-1].tail
    opening, closing = (_SEPARATORS.sub("", part) for part in (dropped[0].lead, tail))
    if opening and closing:  # brackets or quotes around what is dropped, and only around that
        opening = closing = ""
    previous = kept[-1] if kept else None
    starts_sentence = previous is None or previous.ends_sentence
    if following < len(rest):
        after = rest[following]
        core = after.core
        if starts_sentence and dropped[0].core[:1].isupper():
            core = core[:1].upper() + core[1:]
        rest[following] = replace(after, lead=opening + after.lead, core=core)
    if previous is None:
        return
    if not starts_sentence and tail not in _SOFT_TAILS and _TERMINAL.search(tail):
        kept[-1] = replace(previous, tail=previous.tail.rstrip(",") + tail)
    elif strip_comma and tail == "," and previous.tail == ",":
        kept[-1] = replace(previous, tail="")
    elif closing:
        kept[-1] = replace(previous, tail=previous.tail + closing)

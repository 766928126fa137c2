"""The enhancer that needs no model and no network: rules, statistics and nothing invented."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.enhancers.base import EnhancedTranscript, SpokenText, Style
from tasks.enhancers.cleaning import clean, respell
from tasks.enhancers.extraction import find_keywords, split_sentences, summarise

if TYPE_CHECKING:
    from tasks.enhancers.base import Enhancer


class RulesEnhancer:
    """Cleans by rules and extracts; the same input gives the same result on every machine."""

    def enhance(self, spoken: SpokenText, style: Style, vocabulary: tuple[str, ...]) -> EnhancedTranscript:
        """Return the text cleaned as `style` says; vocabulary decides letter case and leads the keywords."""
        text = respell(clean(spoken.text, style, spoken.language, keep=vocabulary), vocabulary)
        sentences = split_sentences(text)
        return EnhancedTranscript(
            text=text,
            sentences=sentences,
            keywords=find_keywords(text, spoken.language, vocabulary),
            summary=summarise(sentences),
            style=style,
            enhancer="rules",
        )


class NoEnhancer:
    """Hands the text on as it is, undivided."""

    def enhance(self, spoken: SpokenText, style: Style, vocabulary: tuple[str, ...]) -> EnhancedTranscript:
        """Return the text unchanged; `style` is only noted and `vocabulary` plays no part."""
        del vocabulary
        sentences = [spoken.text] if spoken.text else []
        return EnhancedTranscript(
            text=spoken.text, sentences=sentences, keywords=[], summary="", style=style, enhancer="none"
        )


if TYPE_CHECKING:
    _implementations: tuple[Enhancer, ...] = (RulesEnhancer(), NoEnhancer())

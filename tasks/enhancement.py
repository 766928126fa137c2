"""Enhancing a transcript: readable text, sentences, keywords and a summary, by rules or by a chat model."""

from typing import Any

from prefect.runtime import task_run

from cache_blocks import AI_ENHANCEMENT, cached_task, record_usage
from tasks.enhancers.base import (
    DEFAULT_PROMPT,
    STYLES,
    EnhancedTranscript,
    EnhancementError,
    Enhancer,
    EnhancerConfig,
    MalformedAnswerError,
    SpokenText,
    Style,
    TokenUsage,
)
from tasks.enhancers.chat import ChatEnhancer
from tasks.enhancers.rules import NoEnhancer, RulesEnhancer
from tasks.naming import shown_name
from tasks.transcript import Transcript

__all__ = [
    "DEFAULT_PROMPT",
    "ENHANCEMENT_VERSION",
    "STYLES",
    "EnhancedTranscript",
    "EnhancementError",
    "Enhancer",
    "EnhancerConfig",
    "MalformedAnswerError",
    "SpokenText",
    "Style",
    "TokenUsage",
    "enhance",
    "make_enhancer",
]

ENHANCEMENT_VERSION = "1"
"""Stands for the sources in `tasks.enhancers`, which the task's own source does not show. Raise it when the
rules, the style instructions or the form of the answer change: everything is then enhanced anew."""


def make_enhancer(config: EnhancerConfig) -> Enhancer:
    """Return the enhancer that `config` names; API keys are read from the environment here."""
    match config.name:
        case "rules":
            return RulesEnhancer()
        case "openai":
            return ChatEnhancer(config)
        case "none":
            return NoEnhancer()


def _tags(arguments: dict[str, Any]) -> list[str]:
    """Let everything of one recording, or that one enhancer or model made, be invalidated at once."""
    config: EnhancerConfig = arguments["enhancer"]
    tags = [f"enhancer:{config.name}", "stage:enhancement"]
    if config.model:
        tags.append(f"model:{config.model}")
    if recording := arguments["recording"]:
        tags.append(f"recording:{recording}")
    return tags


def _run_name() -> str:
    return f"enhance {shown_name(task_run.parameters['name'])}"


@cached_task(
    kind=AI_ENHANCEMENT,
    cache_version=ENHANCEMENT_VERSION,
    cache_ignore=("recording", "name"),
    cache_tags=(_tags,),
    task_run_name=_run_name,
)
def enhance(
    transcript: SpokenText | Transcript,
    enhancer: EnhancerConfig,
    style: Style = "clean",
    vocabulary: tuple[str, ...] = (),
    recording: str = "",  # noqa: ARG001 - read by the tags only
    name: str = "",  # noqa: ARG001 - for people: run name, log and report
) -> EnhancedTranscript:
    """Return `transcript` made readable.

    Args:
        transcript: what was heard. Hand over ``SpokenText.of(transcript)``: then only the words and the
            language count, and not who recognised them or when each was said.
        enhancer: which enhancer, with everything that decides its answer.
        style: how much of the spoken form to keep.
        vocabulary: names and terms, spelled as they should be.
        recording: digest of the recording, which tags the result so that it can be forgotten with it; no part
            of the key.
        name: what people know the recording by; no part of the key either.

    Raises:
        EnhancementError: no result could be had; nothing is cached.
    """
    result = make_enhancer(enhancer).enhance(SpokenText.of(transcript), style, vocabulary)
    if result.usage.tokens_in or result.usage.tokens_out:
        record_usage(tokens_in=result.usage.tokens_in, tokens_out=result.usage.tokens_out)
    return result

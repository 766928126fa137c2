"""The enhancer that asks a chat model behind any OpenAI-compatible endpoint."""

from __future__ import annotations

import re
import string
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.enhancers.base import (
    DEFAULT_PROMPT,
    OPENAI_URL,
    EnhancedTranscript,
    EnhancementError,
    EnhancerConfig,
    MalformedAnswerError,
    SpokenText,
    Style,
    TokenUsage,
)
from tasks.enhancers.extraction import MAX_KEYWORDS, split_sentences

if TYPE_CHECKING:
    import openai
    from openai import OpenAI
    from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

    from tasks.enhancers.base import Enhancer

STYLE_INSTRUCTIONS: dict[Style, str] = {
    "verbatim": "Keep every word as it was said, hesitations and repetitions included.",
    "clean": "Remove hesitations, false starts and repetitions; otherwise keep the speaker's own words.",
    "concise": "Shorten: remove hesitations, filler phrases and asides; keep every fact, name and number.",
}

ANSWER_FORMAT = (
    "\nAnswer with one JSON object and nothing else:"
    ' {"text": "the edited transcript", "keywords": ["…"], "summary": "…"}'
)
WAYS_OUT = {
    400: "does the model take JSON answers, this temperature and texts this long?",
    401: "set OPENAI_API_KEY",
    403: "the key in OPENAI_API_KEY may not do this",
    404: "is that a model there, and does base_url end in /v1?",
    429: "the rate limit held through all retries; raise OPENAI_MAX_RETRIES or lower the concurrency",
}
ATTEMPTS = 2
"""How often one part is asked for when the answers are malformed. Rate limits are retried by the client
instead."""


class ChatSettings(BaseSettings):
    """How to reach the endpoint, from ``OPENAI_*`` variables: nothing here decides what a model answers."""

    model_config = SettingsConfigDict(env_prefix="OPENAI_", frozen=True, extra="ignore", hide_input_in_errors=True)

    api_key: SecretStr | None = Field(default=None, description="Endpoints on one's own machine often need none.")
    timeout_seconds: PositiveFloat = Field(default=120.0, description="For one answer.")
    max_retries: NonNegativeInt = Field(
        default=6,
        description="For rate limits, server errors and lost connections, with backoff and Retry-After.",
    )


class ChatAnswer(BaseModel):
    """What the model is asked to send back for one part of a transcript."""

    model_config = ConfigDict(hide_input_in_errors=True)

    text: Annotated[str, Field(min_length=1)]
    keywords: list[str]
    summary: str


class ChatEnhancer:
    """Sends a transcript, in parts when it is long, with the configured prompt and checks every answer.

    Args:
        config: model, endpoint and prompt; its name is ``openai``.
        settings: API key, timeout and retries; from the environment by default.
    """

    def __init__(self, config: EnhancerConfig, settings: ChatSettings | None = None) -> None:
        self._config = config
        self._settings = settings or ChatSettings()

    def enhance(self, spoken: SpokenText, style: Style, vocabulary: tuple[str, ...]) -> EnhancedTranscript:
        """Return the model's version of the text; silence costs nothing and gives an empty result.

        Raises:
            MalformedAnswerError: the model answered twice with something else than was asked for.
            EnhancementError: the endpoint refused, or failed after all retries, or there is no API key.
        """
        system = render_prompt(self._config, spoken, style, vocabulary)
        with self._connect() as client:
            replies = [
                self._ask(client, system, part)
                for part in split_parts(spoken.text, self._config.part_characters or len(spoken.text))
            ]
        answers = [answer for answer, _ in replies]
        text = "\n\n".join(answer.text.strip() for answer in answers)
        keywords = dict.fromkeys(word.strip() for answer in answers for word in answer.keywords)
        return EnhancedTranscript(
            text=text,
            sentences=split_sentences(text),
            keywords=[word for word in keywords if word][:MAX_KEYWORDS],
            summary=" ".join(answer.summary.strip() for answer in answers),
            style=style,
            enhancer="openai",
            model=self._config.model,
            usage=sum((usage for _, usage in replies), TokenUsage()),
        )

    def _connect(self) -> OpenAI:
        from openai import OpenAI  # an extra that takes 0.5 s to import

        key = self._settings.api_key
        if key is None and self._config.base_url == OPENAI_URL:
            raise EnhancementError("no API key: set OPENAI_API_KEY, or give base_url for an endpoint that needs none")
        return OpenAI(
            base_url=self._config.base_url,
            api_key=key.get_secret_value() if key else "none",
            timeout=self._settings.timeout_seconds,
            max_retries=self._settings.max_retries,
        )

    def _ask(self, client: OpenAI, system: str, part: str) -> tuple[ChatAnswer, TokenUsage]:
        """Return the answer for one part; a malformed one is shown to the model and asked for once more."""
        messages: list[ChatCompletionMessageParam] = [
            {"role": "system", "content": system},
            {"role": "user", "content": part},
        ]
        usage = TokenUsage()
        problem = ""
        for _ in range(ATTEMPTS):
            completion = self._complete(client, messages)
            if completion.usage:
                usage += TokenUsage(
                    tokens_in=completion.usage.prompt_tokens, tokens_out=completion.usage.completion_tokens
                )
            try:
                return read_answer(completion), usage
            except MalformedAnswerError as error:
                problem = str(error)
                said = completion.choices[0].message.content if completion.choices else None
                messages.append({"role": "assistant", "content": said or ""})
                messages.append({"role": "user", "content": f"That was not usable: {problem}.{ANSWER_FORMAT}"})
        raise MalformedAnswerError(
            f"model {self._config.model!r} gave {ATTEMPTS} malformed answers; the last one: {problem}"
        )

    def _complete(self, client: OpenAI, messages: list[ChatCompletionMessageParam]) -> ChatCompletion:
        import openai  # an extra, see above

        temperature = self._config.temperature
        try:
            return client.chat.completions.create(
                model=self._config.model or "",
                messages=messages,
                response_format={"type": "json_object"},
                temperature=openai.omit if temperature is None else temperature,
            )
        except openai.OpenAIError as error:
            # Not chained: what endpoints say may repeat the API key or the transcript, and tracebacks are
            # logged.
            raise EnhancementError(self._explain(error)) from None

    def _explain(self, error: openai.OpenAIError) -> str:
        """Return what went wrong in our own words: status, error code, and what to do about it."""
        status, code = getattr(error, "status_code", None), getattr(error, "code", None)
        found = f"{type(error).__name__}{f', HTTP {status}' if status else ''}"
        if isinstance(code, str) and re.fullmatch(r"[a-z_]{1,64}", code):
            found += f", {code}"
        hint = f"; {WAYS_OUT[status]}" if status in WAYS_OUT else ""
        return f"{self._config.base_url} (model {self._config.model!r}): {found}{hint}"


def render_prompt(config: EnhancerConfig, spoken: SpokenText, style: Style, vocabulary: tuple[str, ...]) -> str:
    """Return the system message: the configured template filled in, and the form of the answer."""
    template = string.Template(config.prompt or DEFAULT_PROMPT)
    filled = template.substitute(
        language=spoken.language or "unknown",
        style=STYLE_INSTRUCTIONS[style],
        vocabulary="; ".join(vocabulary) or "(none given)",
    )
    return filled + ANSWER_FORMAT


def read_answer(completion: ChatCompletion) -> ChatAnswer:
    """Return the checked answer in `completion`.

    Raises:
        MalformedAnswerError: it is cut off, empty or not what was asked for. The message does not repeat it.
    """
    if not completion.choices:
        raise MalformedAnswerError("no answer at all")
    choice = completion.choices[0]
    if choice.finish_reason == "length":
        raise MalformedAnswerError("the answer was cut off at the model's limit; a smaller part_characters helps")
    content = (choice.message.content or "").strip()
    # Many models fence their JSON in Markdown however they are asked.
    content = content.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        return ChatAnswer.model_validate_json(content)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False, include_context=False)
        problems = (".".join(map(str, item["loc"])) + " " + item["msg"] for item in details)
        raise MalformedAnswerError("; ".join(problem.strip() for problem in problems)) from None


def split_parts(text: str, limit: int) -> list[str]:
    """Return `text` in parts of whole sentences, of at most `limit` characters where sentences allow."""
    parts: list[str] = []
    for sentence in split_sentences(text) if len(text) > limit else [text]:
        if parts and len(parts[-1]) + 1 + len(sentence) <= limit:
            parts[-1] = f"{parts[-1]} {sentence}"
        elif sentence:
            parts.append(sentence)
    return parts


if TYPE_CHECKING:
    _implementation: type[Enhancer] = ChatEnhancer

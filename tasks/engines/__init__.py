"""Speech-to-text engines behind one protocol, each imported when it is used."""

from tasks.engines.base import Engine, EngineConfig
from tasks.errors import EngineError

__all__ = ["Engine", "EngineConfig", "engine_for"]


def engine_for(config: EngineConfig) -> Engine:
    """Return the engine that a resolved configuration describes; loads its model, once per process.

    Raises:
        EngineError: The configuration is not resolved, or the engine cannot be had.
    """
    if not config.model_digest:
        raise EngineError("the engine's model is not identified yet; pass engine.resolved()")
    if config.name == "openai":
        from tasks.engines.openai_audio import OpenAIAudioEngine  # the ai extra

        return OpenAIAudioEngine(config)
    from tasks.engines.faster_whisper import FasterWhisperEngine  # the transcription extra

    return FasterWhisperEngine(config)

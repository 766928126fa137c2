"""What a change of preferences, prompt or engine makes new: what depends on it, and nothing else."""

from collections.abc import Generator
from pathlib import Path

import orjson
import pytest

from tasks.audio import AudioOptions
from tasks.engines import EngineConfig
from tasks.enhancement import EnhancerConfig
from tasks.preferences import Preferences, save_preferences
from tests.pipeline.batches import AUDIO, BETTER, SAMPLES, TEXT, run_batch
from tests.pipeline.conftest import FirstRun
from tests.unit.chat_server import ChatServer, chat_server

ONE = SAMPLES / "austen-880.wav"
ASKED = "user-preferences"


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Generator[ChatServer]:
    with chat_server(tmp_path_factory.mktemp("chat")) as server:
        yield server


def test_another_style_is_enhanced_anew_from_the_same_transcript(warm: FirstRun, tmp_path: Path) -> None:
    save_preferences("ann", Preferences(style="verbatim"))
    first = run_batch(SAMPLES, tmp_path / "output", user="ann")
    again = run_batch(SAMPLES, tmp_path / "output", user="ann")
    save_preferences("ann", Preferences(style="concise"))
    changed = run_batch(SAMPLES, tmp_path / "output", user="ann")

    assert warm.ran.misses == {AUDIO: 5, TEXT: 5, BETTER: 5}
    assert (first.misses, first.hits) == ({ASKED: 1, BETTER: 5}, {AUDIO: 5, TEXT: 5})
    assert (again.misses, again.hits) == ({}, {ASKED: 1, AUDIO: 5, TEXT: 5, BETTER: 5})
    assert (changed.misses, changed.hits) == ({ASKED: 1, BETTER: 5}, {AUDIO: 5, TEXT: 5})


def test_a_vocabulary_is_heard_and_spelled(warm: FirstRun, tmp_path: Path) -> None:
    save_preferences("ben", Preferences(vocabulary=("ill-disposed",)))

    ran = run_batch(ONE, tmp_path / "output", user="ben")

    assert "ill-disposed" in ran.texts[ONE.name]
    assert ran.misses == {ASKED: 1, TEXT: 1, BETTER: 1}
    assert ran.hits == {AUDIO: 1}
    assert warm.ran.summary.failed == []


def test_another_prompt_asks_the_chat_model_again_and_nobody_else(
    warm: FirstRun, chat: ChatServer, tmp_path: Path
) -> None:
    chat.answers(orjson.dumps({"text": "Better.", "keywords": ["man"], "summary": "A man."}).decode())
    model = EnhancerConfig(name="openai", model="any", base_url=chat.url)
    other = EnhancerConfig(name="openai", model="any", base_url=chat.url, prompt="Improve $language text. $style")

    ran = [run_batch(ONE, tmp_path / "output", enhancement=config) for config in (model, model, other)]

    assert [one.misses for one in ran] == [{BETTER: 1}, {}, {BETTER: 1}]
    assert [one.texts for one in ran] == [{ONE.name: "Better."}] * 3
    assert len(chat.requests) == 2
    assert warm.ran.summary.failed == []


def test_another_engine_hears_anew_and_what_reads_the_same_is_enhanced_already(warm: FirstRun, tmp_path: Path) -> None:
    ran = run_batch(SAMPLES, tmp_path / "output", engine=EngineConfig(beam_size=1))

    same = sum(ran.texts[name] == text for name, text in warm.ran.texts.items())
    assert ran.hits[AUDIO] == 5
    assert ran.misses[TEXT] == 5
    assert ran.hits.get(BETTER, 0) == same
    assert ran.misses.get(BETTER, 0) == 5 - same


def test_other_audio_options_make_other_sound_and_all_that_follows_from_it(warm: FirstRun, tmp_path: Path) -> None:
    quieter = run_batch(ONE, tmp_path / "output", audio=AudioOptions(target_lufs=-30))
    without_effect = run_batch(ONE, tmp_path / "output", audio=AudioOptions(max_duration_seconds=60))

    assert quieter.misses[AUDIO] == quieter.misses[TEXT] == 1
    assert (without_effect.misses, without_effect.hits) == ({AUDIO: 1}, {TEXT: 1, BETTER: 1})
    assert warm.ran.summary.failed == []

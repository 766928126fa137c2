"""Speech to text: right words, the same twice, one model per process, and engines that say what is wrong."""

import json
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jiwer
import numpy as np
import pytest

from tasks.audio import AudioOptions, ChunkOptions, normalise
from tasks.engines import EngineConfig, engine_for, openai_audio, whisper_models
from tasks.engines.faster_whisper import models_loaded
from tasks.engines.whisper_models import BUNDLED_SHA256, check_bundled, locate
from tasks.errors import DamagedMediaError, EndpointError, EngineError, ModelChangedError, ModelNotFoundError
from tasks.media.wav import read_samples
from tasks.transcription import Transcript, transcribe_file
from tests.unit.media_samples import RECORDINGS, SAMPLES, silence, wav

REFERENCES = dict(line.split("\t") for line in (SAMPLES / "transcripts.tsv").read_text().splitlines()[1:])


@pytest.fixture(scope="module")
def tiny() -> EngineConfig:
    return EngineConfig().resolved()


@pytest.fixture(scope="module")
def audio(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The samples, normalised."""
    folder = tmp_path_factory.mktemp("normalised")
    normalised: dict[str, Path] = {}
    for recording in RECORDINGS:
        normalised[recording.name] = folder / f"{recording.stem}.wav"
        shutil.copy(normalise(recording, AudioOptions()).audio, normalised[recording.name])
    return normalised


def words(text: str) -> str:
    """Lower-case words; the references write "mister" where Whisper writes "Mr."."""
    letters = "".join(character if character.isalnum() else " " for character in text.lower().replace("mr.", "mister"))
    return " ".join(letters.split())


def test_the_samples_have_at_most_one_word_in_ten_wrong(
    tiny: EngineConfig, audio: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    transcripts = {name: transcribe_file(path, tiny) for name, path in audio.items()}

    rate = jiwer.wer(
        [words(REFERENCES[name]) for name in transcripts], [words(one.text) for one in transcripts.values()]
    )
    with capsys.disabled():
        sys.stdout.write(f"\nword error rate over {len(transcripts)} samples: {rate:.1%}\n")
    assert rate <= 0.10
    assert {one.language for one in transcripts.values()} == {"en"}


def test_transcribing_twice_gives_the_same_and_loads_one_model(tiny: EngineConfig, audio: dict[str, Path]) -> None:
    first = transcribe_file(audio["austen-880.wav"], tiny)
    loaded = models_loaded()

    assert transcribe_file(audio["austen-880.wav"], tiny) == first
    assert models_loaded() == loaded


def test_threads_share_one_model(tiny: EngineConfig) -> None:
    with ThreadPoolExecutor(8) as threads:
        engines = list(threads.map(engine_for, [tiny] * 16))

    assert len({id(vars(engine)["_model"]) for engine in engines}) == 1


def test_words_have_times_within_their_segment(tiny: EngineConfig, audio: dict[str, Path]) -> None:
    transcript = transcribe_file(audio["austen-920.ogg"], tiny)

    assert transcript.duration_seconds == pytest.approx(6.0, abs=0.2)
    for segment in transcript.segments:
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert segment.start <= times[0]
        assert times[-1] <= segment.end <= transcript.duration_seconds + 0.5
        assert " ".join(word.word for word in segment.words) == segment.text
        assert all(0 <= (word.probability or 0) <= 1 for word in segment.words)


def test_vocabulary_is_heard(tiny: EngineConfig, audio: dict[str, Path]) -> None:
    """Without being told, Whisper writes the name in the way that is more usual."""
    path = audio["austen-870.mp3"]

    assert "Dashwood" in transcribe_file(path, tiny).text
    assert "Dashwoode" in transcribe_file(path, tiny, vocabulary=("John Dashwoode",)).text


def test_silence_is_an_empty_transcript_and_no_engine_is_asked(tmp_path: Path) -> None:
    """A speech model makes words up when it hears nothing."""
    source = tmp_path / "muted.wav"
    source.write_bytes(wav(silence(2.0)))
    unreachable = EngineConfig(name="openai", base_url="http://127.0.0.1:9/v1").resolved()

    muted = normalise(source, AudioOptions())
    transcript = transcribe_file(muted.audio.path, unreachable)

    assert transcript == Transcript(text="", engine="openai", model="whisper-1")


def test_a_recording_that_was_not_normalised_is_refused(tiny: EngineConfig) -> None:
    with pytest.raises(DamagedMediaError, match="normalise"):
        transcribe_file(SAMPLES / "austen-870.mp3", tiny)


def test_long_audio_in_chunks_reads_like_one(tiny: EngineConfig, audio: dict[str, Path], tmp_path: Path) -> None:
    order = sorted(audio)
    pause = np.zeros(16_000, dtype=np.float32)
    joined = np.concatenate([part for name in order for part in (read_samples(audio[name]), pause)])
    long = tmp_path / "chapter.wav"
    long.write_bytes(wav(np.rint(joined * 32_767).astype(np.int16)))

    transcript = transcribe_file(long, tiny, chunks=ChunkOptions(max_seconds=12))

    assert jiwer.wer(" ".join(words(REFERENCES[name]) for name in order), words(transcript.text)) <= 0.10
    starts = [segment.start for segment in transcript.segments]
    assert starts == sorted(starts)
    assert starts[-1] > 20
    assert transcript.duration_seconds == pytest.approx(joined.size / 16_000, abs=0.01)
    for segment in transcript.segments:
        assert all(segment.start - 0.01 <= word.start <= word.end <= segment.end + 0.01 for word in segment.words)


def test_a_language_that_the_model_does_not_know(tiny: EngineConfig, audio: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="only English, not 'de'"):
        transcribe_file(audio["austen-880.wav"], tiny, language="de")


def test_an_engine_whose_model_nobody_identified_is_refused(audio: dict[str, Path]) -> None:
    """Its transcripts would be kept under a key that another model's could have as well."""
    with pytest.raises(EngineError, match="resolved"):
        transcribe_file(audio["austen-880.wav"], EngineConfig())


def model_folder(folder: Path, *, change: bool = False) -> Path:
    """A copy of the bundled model, its weights changed in one byte if asked for."""
    target = folder / "model"
    shutil.copytree(locate("tiny.en").folder, target)
    if change:
        with (target / "model.bin").open("r+b") as weights:
            weights.seek(-1, os.SEEK_END)
            last = weights.read(1)
            weights.seek(-1, os.SEEK_END)
            weights.write(bytes([last[0] ^ 1]))
    return target


def test_a_model_is_identified_by_its_weights(tmp_path: Path) -> None:
    same, other = (tmp_path / name for name in ("same", "other"))

    assert EngineConfig().resolved().model_digest == f"sha256:{BUNDLED_SHA256}"
    assert EngineConfig(model=str(model_folder(same))).resolved().model_digest == f"sha256:{BUNDLED_SHA256}"
    assert EngineConfig(model=str(model_folder(other, change=True))).resolved().model_digest != (
        f"sha256:{BUNDLED_SHA256}"
    )


def test_bundled_weights_that_were_tampered_with_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered = model_folder(tmp_path, change=True)
    monkeypatch.setattr(whisper_models, "_bundled_folder", lambda: tampered)

    with pytest.raises(ModelChangedError, match=BUNDLED_SHA256):
        EngineConfig().resolved()


def test_an_intact_copy_of_the_bundled_weights_passes(tmp_path: Path) -> None:
    assert check_bundled(model_folder(tmp_path) / "model.bin") == BUNDLED_SHA256


def test_a_model_replaced_after_the_run_was_started_is_noticed(tmp_path: Path, audio: dict[str, Path]) -> None:
    folder = model_folder(tmp_path)
    config = EngineConfig(model=str(folder)).resolved()
    shutil.rmtree(folder)
    model_folder(tmp_path, change=True)

    with pytest.raises(ModelChangedError, match="the run was started for"):
        transcribe_file(audio["austen-880.wav"], config)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"model\.bin is missing"):
        EngineConfig(model=str(tmp_path)).resolved()


def test_a_model_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(ModelNotFoundError, match=r"'nobody/nothing'.*hub"):
        EngineConfig(model="nobody/nothing").resolved()


def test_an_endpoint_is_identified_by_its_address_and_model() -> None:
    config = EngineConfig(name="openai", model="large", base_url="https://speech.example/v1/").resolved()

    assert config.model_digest == "endpoint:https://speech.example/v1/large"


@pytest.mark.parametrize(
    "url", ["https://user:secret@speech.example/v1", "https://speech.example/v1?key=secret", "file:///etc/passwd"]
)
def test_a_configuration_holds_no_credentials(url: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        EngineConfig(name="openai", base_url=url)


class Endpoint(ThreadingHTTPServer):
    """A real HTTP server that speaks ``verbose_json``, after a script of failures.

    Attributes:
        script: Answers before the good one: status and body.
        requests: Headers and bodies of what was asked.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[tuple[int, bytes]] = []
        self.requests: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def config(self) -> EngineConfig:
        return EngineConfig(name="openai", model="whisper-large", base_url=self.url).resolved()


VERBOSE_JSON = {
    "task": "transcribe", "language": "english", "duration": 2.97, "text": " He was not. An ill disposed man. ",
    "segments": [
        {"id": 0, "seek": 0, "start": 0.0, "end": 1.2, "text": " He was not.", "tokens": [1], "temperature": 0.0,
         "avg_logprob": -0.2, "compression_ratio": 1.0, "no_speech_prob": 0.01},
        {"id": 1, "seek": 0, "start": 1.2, "end": 2.9, "text": " An ill disposed man.", "tokens": [2],
         "temperature": 0.0, "avg_logprob": -0.2, "compression_ratio": 1.0, "no_speech_prob": 0.01},
    ],
    "words": [
        {"word": "He", "start": 0.0, "end": 0.3}, {"word": "was", "start": 0.3, "end": 0.7},
        {"word": "not", "start": 0.7, "end": 1.1}, {"word": "An", "start": 1.25, "end": 1.5},
        {"word": "ill", "start": 1.5, "end": 1.8}, {"word": "disposed", "start": 1.8, "end": 2.4},
        {"word": "man", "start": 2.4, "end": 2.9},
    ],
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:  # the name that http.server calls
        endpoint = self.server
        assert isinstance(endpoint, Endpoint)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        endpoint.requests.append(({name.lower(): value for name, value in self.headers.items()}, body))
        good = json.dumps(VERBOSE_JSON).encode()
        known = self.path == "/v1/audio/transcriptions"
        status, content = endpoint.script.pop(0) if endpoint.script else (200, good) if known else (404, b"{}")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Retry-After-Ms", "1")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the signature of the base class
        """Keep the test's output clean."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    server = Endpoint()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_endpoint_is_asked_once_more_when_it_is_busy(endpoint: Endpoint, audio: dict[str, Path]) -> None:
    endpoint.script = [(429, b'{"error": {"message": "slow down"}}'), (503, b"")]

    transcript = transcribe_file(
        audio["austen-880.wav"], endpoint.config(), language="en", vocabulary=("Dashwood", "Elinor")
    )

    assert transcript.text == "He was not. An ill disposed man."
    assert (transcript.engine, transcript.model, transcript.language) == ("openai", "whisper-large", "en")
    assert transcript.duration_seconds == 2.97
    assert [[word.word for word in segment.words] for segment in transcript.segments] == [
        ["He", "was", "not"],
        ["An", "ill", "disposed", "man"],
    ]
    assert len(endpoint.requests) == 3
    headers, body = endpoint.requests[-1]
    assert headers["authorization"] == "Bearer sk-very-secret"
    for part in (b"whisper-large", b"verbose_json", b"Dashwood, Elinor", audio["austen-880.wav"].read_bytes()):
        assert part in body


@pytest.mark.parametrize(
    "status, way_out", [(401, "OPENAI_API_KEY"), (404, "whisper-large"), (413, "chunks="), (400, "answered 400")]
)
def test_a_refusal_says_what_to_do_and_repeats_no_key(
    endpoint: Endpoint, audio: dict[str, Path], status: int, way_out: str
) -> None:
    endpoint.script = [(status, b'{"error": {"message": "Incorrect API key provided: sk-very-secret"}}')]

    with pytest.raises(EndpointError, match=way_out) as caught:
        transcribe_file(audio["austen-880.wav"], endpoint.config())

    assert caught.value.status == status
    assert "sk-very-secret" not in f"{caught.value!r} {caught.value.__cause__!r} {endpoint.config()!r}"
    assert len(endpoint.requests) == 1


def test_a_rate_limit_that_stays_is_an_error_in_the_end(endpoint: Endpoint, audio: dict[str, Path]) -> None:
    endpoint.script = [(429, b"{}")] * 100

    with pytest.raises(EndpointError, match="5 retries"):
        transcribe_file(audio["austen-880.wav"], endpoint.config())

    assert len(endpoint.requests) == 6


@pytest.mark.parametrize("body", [b"<html>welcome</html>", b'"a text"', b'{"status": "ok"}', b'{"text": 1}'])
def test_an_endpoint_that_speaks_something_else(endpoint: Endpoint, audio: dict[str, Path], body: bytes) -> None:
    endpoint.script = [(200, body)]

    with pytest.raises(EndpointError, match="something else than verbose_json"):
        transcribe_file(audio["austen-880.wav"], endpoint.config())


def test_an_endpoint_that_is_not_there(audio: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai_audio, "_RETRIES", 0)
    config = EngineConfig(name="openai", base_url="http://127.0.0.1:9/v1").resolved()

    with pytest.raises(EndpointError, match="does not answer"):
        transcribe_file(audio["austen-880.wav"], config)


def test_openai_itself_needs_a_key(audio: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    with pytest.raises(EngineError, match="set OPENAI_API_KEY"):
        transcribe_file(audio["austen-880.wav"], EngineConfig(name="openai").resolved())

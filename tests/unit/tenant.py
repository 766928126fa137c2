"""What the tests of namespaces run in processes of their own: ``python -m tests.unit.tenant VERB FOLDER``.

``disturb`` does everything in its namespace that removes something, ``stay`` looks up all the while and holds a lease.
The settings, the namespace among them, come from the environment.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

from cache_blocks import AUDIO_PREPROCESSING, SEARCH_RESULTS, TRANSCRIPT, CachedFile, TieredCache
from cache_blocks.fingerprint import digest_bytes
from cache_blocks.maintenance import collect, forget
from tasks.preferences import Preferences, save_preferences
from tasks.search import index_transcript, remove_recording
from tasks.transcript import Segment, Transcript

RECORDING = b"an encoded walrus"
DIGEST = digest_bytes(RECORDING)
SOUND = b"RIFF sound of the walrus " * 40
TAG = f"recording:{DIGEST}"
KEYS = [f"transcript:{number}" for number in range(8)]
FILE = "audio-preprocessing:walrus"
LEASED = "search-results:being-computed"
YEARS = 400 * 86400


def own_key(namespace: str) -> str:
    """A key that only this namespace has."""
    return f"search-results:of-{namespace}-alone"


def fill(cache: TieredCache, folder: Path) -> None:
    """Put into a namespace what every one has, under the same keys, and one key of its own."""
    namespace = cache.settings.namespace
    sound = folder / f"{namespace}.wav"
    sound.write_bytes(SOUND)
    for number, key in enumerate(KEYS):
        tags = (TAG,) if number % 2 else (f"{TAG}-not", "even")
        cache.put(key, [namespace, number], kind=TRANSCRIPT, tags=tags, compute_seconds=2.0)
    cache.put(FILE, CachedFile.from_path(sound, "audio/wav"), kind=AUDIO_PREPROCESSING, tags=(TAG,))
    cache.put(own_key(namespace), [namespace], kind=SEARCH_RESULTS)
    sound.unlink()
    look(cache)
    cache.parts.events.flush()


def look(cache: TieredCache) -> int:
    """Look everything up; return how many answers were not the namespace's own."""
    namespace = cache.settings.namespace
    wanted = {key: [namespace, number] for number, key in enumerate(KEYS)} | {own_key(namespace): [namespace]}
    found = cache.get_many(wanted)
    file = cache.get(FILE)
    wrong = sum(found[key] != value for key, value in wanted.items())
    return wrong + (not isinstance(file, CachedFile) or file.path.read_bytes() != SOUND)


def remember(user: str) -> None:
    """Keep what the pipeline keeps beside the cache."""
    spoken = Transcript.of_segments([Segment(start=0, end=1, text="the walrus sings")])
    index_transcript(DIGEST, f"{user}.mp3", spoken)
    save_preferences(user, Preferences())


def disturb(cache: TieredCache, folder: Path) -> dict[str, Any]:
    """Remove things in every way there is."""
    before = cache.parts.leases.view(LEASED)
    answer = cache.get_or_compute(LEASED, lambda: "computed by the other", kind=SEARCH_RESULTS)
    told = {"lease": before.state, "computed": answer}
    forgotten = forget(cache, DIGEST, also=[remove_recording])
    told |= {"forgotten": sorted(forgotten.entries), "left": dict(forgotten.left)}
    whats: list[dict[str, str]] = [{"key": KEYS[0]}, {"tag": TAG}, {"kind": "transcript"}, {}]
    for what in whats:
        fill(cache, folder)
        told[f"invalidated {' '.join(what)}".strip()] = cache.invalidate(**what).entries
        told[f"missed {' '.join(what)}".strip()] = look(cache)
    fill(cache, folder)
    told["damaged"] = cache.verify().as_dict()["corrupt"]
    collected = collect(cache, now=time.time() + YEARS)  # everything has expired, every blob is old
    told |= {"expired": collected.expired, "blobs": collected.blobs, "errors": collected.errors}
    told["missed in the end"] = look(cache)
    return told


def stay(cache: TieredCache, folder: Path) -> dict[str, Any]:
    """Look everything up until the test says stop, in the middle of a computation."""
    computing, stop = threading.Event(), folder / "stop"

    def compute() -> str:
        computing.set()
        while not stop.exists():
            time.sleep(0.01)
        return "computed here"

    thread = threading.Thread(target=cache.get_or_compute, args=(LEASED, compute), kwargs={"kind": SEARCH_RESULTS})
    thread.start()
    computing.wait()
    rounds, wrong = 0, look(cache)
    (folder / "ready").touch()
    while not stop.exists():
        rounds, wrong = rounds + 1, wrong + look(cache)
    thread.join()
    wrong += look(cache)
    return {"rounds": rounds, "wrong": wrong, "computed": cache.get(LEASED), "unleased": cache.metrics.unleased}


def main(verb: str, folder: str) -> None:
    cache = TieredCache.from_settings()
    done = {"disturb": disturb, "stay": stay}[verb](cache, Path(folder))
    cache.close()
    print(json.dumps(done))  # noqa: T201 - standard output is how it answers


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The batch flow in a process of its own: ``python -m tests.pipeline.child SOURCE OUTPUT``, JSON as the last line."""

from __future__ import annotations

import json
import sys

from tests.pipeline.batches import summary_of

NOTABLE = ("av", "ctranslate2", "faster_whisper", "onnxruntime", "openai", "pydub")


def main(source: str, output: str) -> None:
    """Run the batch and say what came of it."""
    from flows.batch_transcription import batch_transcription
    from tasks.engines.faster_whisper import models_loaded

    state = batch_transcription(source, output, return_state=True)
    said = {
        "state": state.name,
        "message": state.message,
        "summary": summary_of(state).model_dump(mode="json"),
        "flow_run_id": str(state.state_details.flow_run_id),
        "models_loaded": models_loaded(),
        "modules": [name for name in NOTABLE if name in sys.modules],
    }
    print(json.dumps(said))  # noqa: T201 - standard output is how it answers


if __name__ == "__main__":
    main(*sys.argv[1:])

"""The speech pipeline: audio, transcription, enhancement, search and preferences as cached Prefect tasks."""

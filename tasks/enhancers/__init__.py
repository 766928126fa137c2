"""Ways to enhance a transcript: `rules` needs no network, `chat` asks a language model."""

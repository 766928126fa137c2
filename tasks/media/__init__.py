"""Sound out of any media file, without trusting it: reading, decoding, loudness, silence.

Needs the `audio` extra (PyAV, numpy, SciPy, pyloudnorm, pydub). Import these modules where they are used.
"""

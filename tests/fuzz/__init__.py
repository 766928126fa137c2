"""Random and damaged bytes for everything that decodes."""

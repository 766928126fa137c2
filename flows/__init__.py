"""The pipeline's flows, deployed from this repository."""

"""Tests of the files under ``deployments/``, as far as one gets without an engine for containers."""

"""The plugin inside Prefect's engine."""

"""Prefect's UI in a real browser: what a reader of a report sees."""

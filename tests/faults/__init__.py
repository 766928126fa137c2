"""Servers that die, hang and lie; files that are broken."""

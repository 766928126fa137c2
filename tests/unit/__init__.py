"""Single parts, by themselves."""

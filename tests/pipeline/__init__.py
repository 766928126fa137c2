"""The whole pipeline: real speech through real flow runs."""

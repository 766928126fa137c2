"""The cache, told by example: read these first."""

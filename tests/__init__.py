"""The tests. `fundamentals/` reads as a tutorial; the other folders each try to break something."""

"""One config class a strategy, found by file name."""

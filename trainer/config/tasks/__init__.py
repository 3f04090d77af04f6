"""One config class a task, found by file name."""

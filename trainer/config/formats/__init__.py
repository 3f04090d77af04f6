"""The files of other libraries, read without importing them: torch-free and without running anything that is in the files."""

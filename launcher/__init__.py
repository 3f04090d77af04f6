"""The launcher: turns a run file into processes. Imports no torch."""

"""Losses beside the task's: one config class a loss, found by file name."""

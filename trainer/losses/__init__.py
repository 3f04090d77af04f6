"""Losses that tasks choose from."""

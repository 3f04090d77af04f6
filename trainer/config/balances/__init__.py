"""How several losses are balanced: one config class each, found by file name."""

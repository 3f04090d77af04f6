"""`graft sample` and `graft translate`: images that a trained network makes, by one process or by several side by side."""

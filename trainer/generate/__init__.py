"""`graft sample`: images of a trained generator, made by one process or by several side by side."""

"""What `graft doctor` runs on a compute node, and measures on the login node in the same way.

Standard library alone, torch only where a collective is measured: the folder is copied beside the run folders and started by the
interpreter that jobs use, so that an interpreter without graft, or without torch, is found and named rather than a traceback.
"""

"""Measurements that README.md states; each prints its figures and the command that repeats them."""

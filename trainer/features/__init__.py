"""What a frozen first part of a network makes is computed once: where it ends, what is kept, and how it is read."""

"""Slow versions that one can read: what the notes say, in loops."""

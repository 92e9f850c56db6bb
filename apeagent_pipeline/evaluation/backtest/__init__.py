"""Decisions replayed on held-out real swaps."""

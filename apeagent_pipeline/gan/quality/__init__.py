"""The quality report: how close synthetic windows are to real ones."""

"""How close synthetic windows are to real ones."""

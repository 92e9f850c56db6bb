"""The adapter in service on new days: what it answers, what that was worth, and how far the market has moved."""

"""A simulated quarter of operation: `plan` says what happens when, `daemon` runs it, `life` lives through it."""

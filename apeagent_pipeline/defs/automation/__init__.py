"""What the daemon does without being asked."""

"""What people look at: reports, plots and progress. Knows nothing of swaps or models."""

"""Reports, figures and progress. Knows nothing of swaps or models."""

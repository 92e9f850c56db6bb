"""How artifacts are stored, and what they were made from. Knows neither Dagster nor swaps."""

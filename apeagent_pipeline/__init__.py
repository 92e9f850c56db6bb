"""A Dagster asset graph that turns Uniswap V4 swaps into a small trading model and proves what it learned.

Each sub-package is one room of the pipeline; ``defs`` is the only one that knows Dagster.
Importing the package imports none of them.
"""

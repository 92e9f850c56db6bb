"""What swaps say about the market: features of every swap, and windows of swaps a model learns from.

Belongs here: columns computed from swaps and the cleaning, splitting and scaling of windows. Does not belong here:
reading swaps (`chain`), the pool's arithmetic (`amm`), anything that is learned (`gan`).
"""

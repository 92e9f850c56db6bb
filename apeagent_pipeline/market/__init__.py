"""Features of swaps, and the training windows that are cut from them.

Belongs here: columns computed from swaps, and the cleaning, splitting and scaling of windows. Does not belong here:
reading swaps (`chain`), the pool's arithmetic (`amm`), models (`gan`).
"""

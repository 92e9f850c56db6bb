"""Uniswap V4's own arithmetic in exact integers: ticks, square-root prices, swap steps, pools and their ids.

Does not belong here: reading swaps (`chain`), and approximations, except for the human prices of `amm.price`.
"""

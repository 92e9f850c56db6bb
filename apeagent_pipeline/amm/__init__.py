"""Uniswap V4's own arithmetic in exact integers: ticks, square-root prices, swap steps, pools and their ids.

What does not belong here: reading swaps from anywhere (that is ``chain/``), and anything approximate but the human
prices of ``amm.price``.
"""

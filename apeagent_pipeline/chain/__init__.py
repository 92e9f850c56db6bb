"""How swaps are read: events and their schema, days and blocks, JSON-RPC, the collector, archives, the embedded chain.

Whatever the source, what leaves this room is a polars frame in ``chain.events.RAW_SWAPS_SCHEMA``. What does not belong
here: features of swaps (``market/``) and the pool's arithmetic (``amm/``).
"""

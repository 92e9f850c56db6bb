"""The generator of swaps: a transformer GAN, its training, sampling, and the scores that judge it.

Belongs here: everything that learns or judges the distribution of swaps. Does not belong here: how real swaps become
windows (`market`), the arithmetic of a swap (`amm`), what is asked about a window (`distillation`).
"""

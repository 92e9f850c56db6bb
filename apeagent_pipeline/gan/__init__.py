"""The GAN that generates swaps: its networks, training, sampling, and the scores that judge it.

Belongs here: everything that learns or judges the distribution of swaps. Does not belong here: how real swaps become
windows (`market`), the arithmetic of a swap (`amm`), the prompts about a window (`distillation`). To use another
generator, implement `sampling.WindowGenerator`.
"""

"""The critic: causal convolutions over a history and its continuation."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from apeagent_pipeline.gan.config import GanConfig

_KERNEL = 5
_SEEN = 7
"""What the critic sees of a row beside its ranks."""


class Critic(nn.Module):
    """Scores how real each row of a window is after the rows before it, and so the window.

    Causal convolutions in time without normalisation (WGAN-GP, section 4): the score of a row depends on no later row,
    so a choice of the generator is to be judged by the scores from its own row on.
    """

    def __init__(self, config: GanConfig, features: int) -> None:
        super().__init__()
        width = config.critic_channels
        sizes = (features + _SEEN, width, 3 * width // 2, 2 * width)
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, _KERNEL, dilation=2**k) for k, (before, after) in enumerate(pairwise(sizes))
        )
        self.summary = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1)
        self.kernels, self.kernel_width = 8, 4
        self.projection = nn.Linear(width, self.kernels * self.kernel_width, bias=False)
        self.batch_score = nn.Linear(self.kernels, 1)

    def activations(self, condition: Tensor, window: Tensor) -> Tensor:
        """What the critic sees of condition [n, context, seen] and window [n, T, seen] -> [n, T, width]."""
        x = torch.cat([condition, window], dim=1).transpose(1, 2)
        for k, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(F.pad(x, ((_KERNEL - 1) * 2**k, 0))), 0.2)
        return F.leaky_relu(self.summary(x[..., condition.shape[1] :].transpose(1, 2)), 0.2)

    def forward(self, activations: Tensor) -> Tensor:
        """Score of every row of every window by itself, [n, T]; the gradient penalty holds their mean."""
        return self.score(activations).squeeze(-1)

    def compare(self, activations: Tensor) -> Tensor:
        """Minibatch discrimination: a bounded score of how close a window is to the others of its batch, [n].

        Source: Salimans et al. 2016, section 3.2. It depends on the whole batch, so it stays out of the gradient
        penalty. Distances are written as a broadcast difference, which every device can differentiate.
        """
        projected = self.projection(activations.mean(dim=1)).view(len(activations), self.kernels, self.kernel_width)
        distances = (projected[:, None] - projected[None]).abs().sum(dim=3)
        others = torch.exp(-distances).sum(dim=1) - 1.0
        return torch.tanh(self.batch_score(others / max(len(activations) - 1, 1))).squeeze(1)

"""The critic: causal convolutions over a condition and its window, and the advantages taken from its scores."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from apeagent_pipeline.gan.config import GanConfig

_KERNEL = 5
_STATE_COLUMNS = 7
"""Columns of `Generator.critic_view` besides the ranks."""


class Critic(nn.Module):
    """Scores how realistic each row of a window is, given the rows before it; a window's score is the mean.

    The convolutions are causal, so the score of a row depends on no later row, and the reward of a choice is the sum
    of scores from its own row on. There is no normalisation layer (Gulrajani et al. 2017, section 4).
    """

    def __init__(self, config: GanConfig, features: int) -> None:
        super().__init__()
        width = config.critic_channels
        sizes = (features + _STATE_COLUMNS, width, 3 * width // 2, 2 * width)
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, _KERNEL, dilation=2**k) for k, (before, after) in enumerate(pairwise(sizes))
        )
        self.summary = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1)
        self.kernels, self.kernel_width = 8, 4
        self.projection = nn.Linear(width, self.kernels * self.kernel_width, bias=False)
        self.batch_score = nn.Linear(self.kernels, 1)
        self.minibatch_discrimination = config.minibatch_discrimination

    def activations(self, condition: Tensor, window: Tensor) -> Tensor:
        """Critic views of condition [n, context, columns] and window [n, T, columns] -> [n, T, width]."""
        x = torch.cat([condition, window], dim=1).transpose(1, 2)
        for k, layer in enumerate(self.layers):
            x = F.leaky_relu(layer(F.pad(x, ((_KERNEL - 1) * 2**k, 0))), 0.2)
        return F.leaky_relu(self.summary(x[..., condition.shape[1] :].transpose(1, 2)), 0.2)

    def forward(self, activations: Tensor) -> Tensor:
        """Score of every row, [n, T], independent of the batch; the gradient penalty applies to their mean."""
        return self.score(activations).squeeze(-1)

    def window_scores(self, activations: Tensor) -> Tensor:
        """Score of every window, [n]: the mean of its rows, plus its score within the batch."""
        return self(activations).mean(dim=1) + self.compare(activations)

    def compare(self, activations: Tensor) -> Tensor:
        """Minibatch discrimination: a bounded score of how close a window is to the others of its batch, [n].

        Without ``minibatch_discrimination`` it is 0.

        Source: Salimans et al. 2016, section 3.2. It depends on the whole batch, so the gradient penalty excludes it.
        Distances are broadcast differences, which every device can differentiate.
        """
        if not self.minibatch_discrimination:
            return activations.new_zeros(len(activations))
        projected = self.projection(activations.mean(dim=1)).view(len(activations), self.kernels, self.kernel_width)
        distances = (projected[:, None] - projected[None]).abs().sum(dim=3)
        others = torch.exp(-distances).sum(dim=1) - 1.0
        return torch.tanh(self.batch_score(others / max(len(activations) - 1, 1))).squeeze(1)


def policy_advantages(rewards: Tensor, samples: int) -> Tensor:
    """Rewards [n, T] minus the mean of the other samples of the same history, divided by their standard deviation.

    Args:
        rewards: Rewards of the choices of each row; the ``samples`` continuations of a history are adjacent.
        samples: Continuations of each history.
    """
    groups = rewards.view(-1, samples, rewards.shape[1])
    others = (groups.sum(dim=1, keepdim=True) - groups) / max(samples - 1, 1)
    advantage = (groups - others).view_as(rewards)
    return advantage / (advantage.std() + 1e-6)

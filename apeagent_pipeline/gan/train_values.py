"""The train values of the free features as tensors, in which a bin and a position inside it stand for a number."""

import math

import numpy as np
import torch
from torch import Tensor, nn

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.rows import Rows

_SIDE = 1
"""Column of the side."""

_UNIT_VARIANCE = math.sqrt(12.0)
"""Scales a uniform variable to variance 1."""


class TrainValues(nn.Module):
    """Sorted train values and the ranks at which bins start, as buffers that follow the generator to its device.

    Attributes:
        single_valued: Whether a bin holds one value, [features, bins].
        middles: Rank of the middle of a bin, of mean 0 and variance 1, [features, bins].
        offsets: Number of all bins of the features before, [features].
    """

    single_valued: Tensor
    middles: Tensor
    offsets: Tensor
    _start: Tensor
    _count: Tensor
    _values: Tensor

    def __init__(self, bins: RowBins) -> None:
        super().__init__()
        start = torch.zeros(bins.features, max(bins.counts), dtype=torch.long)
        count = torch.ones_like(start)
        for k, starts in enumerate(bins.starts):
            ranks = torch.from_numpy(starts)
            start[k, : len(ranks) - 1], count[k, : len(ranks) - 1] = ranks[:-1], ranks.diff()
        self._bins = bins.counts
        values = torch.from_numpy(np.stack(bins.values))
        middles = ((start + count / 2) / values.shape[1] - 0.5) * _UNIT_VARIANCE
        buffers = {
            "_start": start,
            "_count": count,
            "_values": values.float(),
            "single_valued": values.gather(1, start) == values.gather(1, start + count - 1),
            "middles": middles.float(),
            "offsets": torch.tensor([0, *bins.counts[:-1]]).cumsum(0),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor, persistent=False)

    def value(self, feature: int, bins: Tensor, positions: Tensor) -> Tensor:
        """The train values of one feature at ``positions`` inside ``bins``, all [n, T]."""
        start, count = self._start[feature, bins], self._count[feature, bins]
        return self._values[feature, start + torch.minimum((positions * count).long(), count - 1)]

    def bin_of(self, feature: int, values: Tensor) -> Tensor:
        """The bins of values of one feature, int64, the shape of ``values``."""
        last = self._start[feature, 1 : self._bins[feature]] - 1
        return torch.searchsorted(self._values[feature, last], values.contiguous())

    def ranks(self, rows: Rows) -> Tensor:
        """Rows as ranks of mean 0 and variance 1, [n, T, features]; differentiable in the positions."""
        columns = torch.arange(len(self._bins), device=rows.bins.device)
        start, count = self._start[columns, rows.bins], self._count[columns, rows.bins]
        middle = torch.full_like(rows.positions[..., :1], 0.5)  # a side has no position inside its bin
        positions = torch.cat([rows.positions[..., :_SIDE], middle, rows.positions[..., _SIDE + 1 :]], dim=-1)
        return ((start + count * positions) / self._values.shape[1] - 0.5) * _UNIT_VARIANCE

    def in_single_valued_bin(self, rows: Rows) -> Tensor:
        """Whether the bin of every feature holds one value, [n, T, features]."""
        return self.single_valued[torch.arange(len(self._bins), device=rows.bins.device), rows.bins]

"""Transformer layers of the generator."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from apeagent_pipeline.gan.config import GanConfig


class Dropout(nn.Dropout):
    """Dropout that draws one byte per value; on the CPU torch's own draws take a third of a likelihood step."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout to any shape; on the CPU ``p`` is rounded to a 256th."""
        if not self.training or self.p == 0 or x.device.type != "cpu":
            return super().forward(x)
        kept = round(256 * (1 - self.p))
        words = torch.empty(-(-x.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        drawn = words.view(torch.uint8)[: x.numel()].view(x.shape)
        return x * ((drawn < kept) * (256 / kept))


class Attention(nn.Module):
    """Multi-head attention of ``x`` to ``source``."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, Dropout(dropout)
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def keys_values(self, source: Tensor) -> Tensor:
        """Keys and values, [2, n, heads, rows, hidden / heads]."""
        n, rows, _ = source.shape
        return self.key_value(source).view(n, rows, 2, self.heads, -1).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys_values: Tensor, causal: bool = False) -> Tensor:
        """Attend from ``x`` [n, T, hidden] to keys and values; with ``causal`` row t attends to no row after t."""
        n, rows, hidden = x.shape
        query = self.query(x).view(n, rows, self.heads, -1).transpose(1, 2)
        keys, values = keys_values
        if self.training and self.dropout.p > 0:  # fused attention would fall back to these steps
            scores = query @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
            if causal:
                scores = scores + torch.full((rows, rows), -math.inf, device=x.device).triu(1)
            attended = self.dropout(scores.softmax(dim=-1)) @ values
        else:
            attended = F.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return self.out(attended.transpose(1, 2).reshape(n, rows, hidden))

    def keys_values_batch_last(self, source: Tensor) -> Tensor:
        """The same keys and values with the batch as the last dimension, [2, heads, hidden / heads, rows, n]."""
        return self._batch_last(self.key_value, source).unflatten(0, (2, self.heads, -1))

    def attend_one(self, x: Tensor, keys_values_batch_last: Tensor) -> Tensor:
        """Attend from one row ``x`` [n, 1, hidden], without dropout or gradient.

        On the CPU, elementwise products over the batch take half the time of fused attention for a single query.
        """
        keys, values = keys_values_batch_last
        query = self._batch_last(self.query, x).unflatten(0, (self.heads, -1))
        products = query * keys
        weights = (products.sum(dim=1) * keys.shape[1] ** -0.5).softmax(dim=1)
        attended = torch.mul(weights.unsqueeze(1), values, out=products).sum(dim=2)
        return self.out(attended.flatten(0, 1).T).unsqueeze(1)  # in two dimensions, for one matrix product

    @staticmethod
    def _batch_last(linear: nn.Linear, x: Tensor) -> Tensor:
        """[n, rows, in] -> [out, rows, n]."""
        n, rows, _ = x.shape
        columns = x.transpose(0, 1).flatten(0, 1).T
        return torch.addmm(linear.bias[:, None], linear.weight, columns).view(-1, rows, n)


def feed_forward(hidden: int, dropout: float) -> nn.Sequential:
    """The position-wise network of a transformer layer."""
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), Dropout(dropout), nn.Linear(4 * hidden, hidden))


class EncoderLayer(nn.Module):
    """Bidirectional self-attention over the condition rows, then a feed-forward network (pre-norm)."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in range(2))
        self.attention = Attention(config.hidden, config.heads, config.dropout)
        self.feed_forward = feed_forward(config.hidden, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, context, hidden] -> [n, context, hidden]."""
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the condition, feed-forward network (pre-norm)."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in range(3))
        self.attention = Attention(config.hidden, config.heads, config.dropout)
        self.cross_attention = Attention(config.hidden, config.heads, config.dropout)
        self.feed_forward = feed_forward(config.hidden, config.dropout)
        self.dropout = Dropout(config.dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Decode a whole window ``x`` [n, T, hidden], given the encoded ``condition`` [n, context, hidden]."""
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed), causal=True))
        keys_values = self.cross_attention.keys_values(condition)
        x = x + self.dropout(self.cross_attention(self.norms[1](x), keys_values))
        return x + self.dropout(self.feed_forward(self.norms[2](x)))

    def decode_step(self, x: Tensor, condition: Tensor, window: Tensor, step: int) -> Tensor:
        """Decode one row with the key-value cache.

        Args:
            x: The row, [n, 1, hidden].
            condition: Keys and values of the condition rows, [2, heads, hidden / heads, context, n].
            window: Keys and values of the window's rows so far; the keys and values of this row are written into it.
            step: Position of the row in the window.
        """
        normed = self.norms[0](x)
        window[..., step : step + 1, :] = self.attention.keys_values_batch_last(normed)
        x = x + self.attention.attend_one(normed, window[..., : step + 1, :])
        x = x + self.cross_attention.attend_one(self.norms[1](x), condition)
        return x + self.feed_forward(self.norms[2](x))


class PositionHead(nn.Module):
    """Transforms uniform noise into a position inside the bin, conditioned on the hidden state.

    The logit of the noise is stretched and shifted within bounds. At initialisation the transform is the identity, so
    positions follow the empirical distribution of the bin. The density is known in closed form.
    """

    def __init__(self, hidden: int, features: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden)
        self.outer = nn.Linear(hidden, 2 * features)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def _stretch_and_shift(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        stretch, shift = self.outer(F.gelu(self.inner(hidden))).chunk(2, dim=-1)
        return torch.tanh(stretch), 4 * torch.tanh(shift)

    def forward(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """``hidden`` [..., hidden], ``noise`` [..., features] uniform in (0, 1) -> positions [..., features]."""
        stretch, shift = self._stretch_and_shift(hidden)
        return torch.sigmoid(torch.logit(noise, eps=1e-6) * torch.exp(stretch) + shift)

    def log_density(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Log density of ``positions`` [..., features]; 0 for the uniform distribution."""
        stretch, shift = self._stretch_and_shift(hidden)
        logit = torch.logit(positions, eps=1e-4)
        source = (logit - shift) * torch.exp(-stretch)
        # The density of a logistic variable is sigmoid(x) sigmoid(-x).
        return F.logsigmoid(source) + F.logsigmoid(-source) - stretch - F.logsigmoid(logit) - F.logsigmoid(-logit)


def sinusoids(positions: int, hidden: int) -> Tensor:
    """Sinusoidal position encodings, [positions, hidden] (Vaswani et al. 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, hidden, 2) * (-math.log(1_000.0) / hidden))
    angles = torch.arange(positions)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :hidden]

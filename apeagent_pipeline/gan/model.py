"""The generator and the critic.

The generator is a transformer decoder over the rows of a window: causal self-attention, cross-attention to the encoded
rows that the window continues, one row at a time. A row leaves it in two parts. First its bins, feature after feature,
each knowing those before it in the row; then, from fresh noise, a position inside each bin (`ResidualHead`). The bins
are trained by likelihood. The positions are continuous, so the critic's gradient reaches them: they are what WGAN-GP
trains. Nothing else moves in that stage, so the likelihood that was reached stays.

The critic sees rows as ranks: the bin's place in the feature's train distribution plus the position inside it, a
relaxed continuous row in which every feature of real data is uniform.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - its usual name

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.config import GanConfig

_SIDE = 1
_STATE = 4
_UNIT_VARIANCE = math.sqrt(12.0)


class Rows(NamedTuple):
    """Rows of windows and of the histories they continue.

    Attributes:
        bins: Bins of the irreducible features, int64 [n, T, 5].
        positions: Positions inside them, in [0, 1], [n, T, 5].
        state: Where the market stands after each row, [n, T, 4]: log return since the row before; log price and log
            liquidity against the last row of the history; log virtual token1 reserve at that last row.
    """

    bins: Tensor
    positions: Tensor
    state: Tensor

    def part(self, rows: slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(each[:, rows] for each in self))

    def then(self, later: "Rows") -> "Rows":
        """These rows and those after them."""
        return Rows(*(torch.cat(parts, dim=1) for parts in zip(self, later, strict=True)))


class Sample(NamedTuple):
    """Sampled rows [n, T] and what their positions came from: known [n, T, hidden], noise [n, T, features + noise]."""

    rows: Rows
    known: Tensor
    noise: Tensor


class Cache(NamedTuple):
    """Keys and values that later steps need, [layers, 2, n, heads, rows, hidden / heads] each."""

    own: Tensor
    condition: Tensor


class Attention(nn.Module):
    """Multi-head attention of ``x`` to ``source``."""

    def __init__(self, hidden: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(hidden, hidden)
        self.key_value = nn.Linear(hidden, 2 * hidden)
        self.out = nn.Linear(hidden, hidden)

    def keys_values(self, source: Tensor) -> Tensor:
        """Keys and values, [2, n, heads, rows, hidden / heads]."""
        n, rows, _ = source.shape
        return self.key_value(source).view(n, rows, 2, self.heads, -1).permute(2, 0, 3, 1, 4)

    def forward(self, x: Tensor, keys_values: Tensor, causal: bool = False) -> Tensor:
        """Attend from ``x`` [n, T, hidden] to keys and values; ``causal`` where row t must not see rows after t."""
        n, rows, hidden = x.shape
        query = self.query(x).view(n, rows, self.heads, -1).transpose(1, 2)
        dropout = self.dropout if self.training else 0.0
        seen = F.scaled_dot_product_attention(
            query, keys_values[0], keys_values[1], dropout_p=dropout, is_causal=causal
        )
        return self.out(seen.transpose(1, 2).reshape(n, rows, hidden))


def _feed_forward(hidden: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * hidden, hidden))


class EncoderLayer(nn.Module):
    """Self-attention in both directions over the condition rows, then a feed-forward network."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in range(2))
        self.attention = Attention(config.hidden, config.heads, config.dropout)
        self.feed_forward = _feed_forward(config.hidden, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[n, context, hidden] -> the same."""
        normed = self.norms[0](x)
        x = x + self.dropout(self.attention(normed, self.attention.keys_values(normed)))
        return x + self.dropout(self.feed_forward(self.norms[1](x)))


class DecoderLayer(nn.Module):
    """Causal self-attention, cross-attention to the condition, feed-forward network; normalised before each."""

    def __init__(self, config: GanConfig) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(config.hidden) for _ in range(3))
        self.attention = Attention(config.hidden, config.heads, config.dropout)
        self.cross_attention = Attention(config.hidden, config.heads, config.dropout)
        self.feed_forward = _feed_forward(config.hidden, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, condition: Tensor, own: Tensor | None = None, step: int = 0) -> Tensor:
        """One layer over a whole window, or over one row of it.

        Args:
            x: Rows, [n, T, hidden]; T is 1 when sampling.
            condition: Keys and values of the condition rows.
            own: When sampling, keys and values of the rows so far; those of this row are written at ``step``.
            step: Position of the row in the window.
        """
        normed = self.norms[0](x)
        keys_values = self.attention.keys_values(normed)
        if own is not None:
            own[:, :, :, step : step + 1] = keys_values
            keys_values = own[:, :, :, : step + 1]
        x = x + self.dropout(self.attention(normed, keys_values, causal=own is None))
        x = x + self.dropout(self.cross_attention(self.norms[1](x), condition))
        return x + self.dropout(self.feed_forward(self.norms[2](x)))


class ResidualHead(nn.Module):
    """Fresh noise -> position inside the bin, given what the trunk knows and the row's bins.

    It starts as the identity on uniform noise, which draws from the empirical distribution of the bin; training can
    only bend that within bounds.
    """

    def __init__(self, config: GanConfig, features: int) -> None:
        super().__init__()
        self.features = features
        self.inner = nn.Linear(config.hidden + config.noise + features, config.hidden)
        self.outer = nn.Linear(config.hidden, 2 * features)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, known: Tensor, noise: Tensor) -> Tensor:
        """``known`` [..., hidden], ``noise`` [..., features + noise] standard normal -> positions [..., features]."""
        uniform = torch.special.ndtr(noise[..., : self.features]).clamp(1e-6, 1 - 1e-6)
        stretch, shift = self.outer(F.gelu(self.inner(torch.cat([known, noise], dim=-1)))).chunk(2, dim=-1)
        return torch.sigmoid(torch.logit(uniform) * torch.exp(2 * torch.tanh(stretch)) + 4 * torch.tanh(shift))


class Generator(nn.Module):
    """Writes a window row by row, given the rows it continues."""

    rank_start: Tensor
    rank_count: Tensor
    values: Tensor
    offsets: Tensor
    places: Tensor
    state_centre: Tensor
    state_scale: Tensor

    def __init__(self, config: GanConfig, bins: RowBins, context: int, length: int) -> None:
        super().__init__()
        self.config, self.context, self.length = config, context, length
        self.counts, self.features = bins.counts, bins.features
        start = torch.zeros(self.features, max(self.counts), dtype=torch.long)
        count = torch.ones_like(start)
        for k, starts in enumerate(bins.starts):
            ranks = torch.from_numpy(starts)
            start[k, : len(ranks) - 1], count[k, : len(ranks) - 1] = ranks[:-1], ranks.diff()
        self.register_buffer("rank_start", start, persistent=False)
        self.register_buffer("rank_count", count, persistent=False)
        values = torch.from_numpy(np.stack(bins.values)).float()
        self.register_buffer("values", values, persistent=False)
        self.register_buffer("state_centre", torch.zeros(_STATE))
        self.register_buffer("state_scale", torch.ones(_STATE))
        offsets = torch.tensor([0, *self.counts[:-1]]).cumsum(0)
        self.register_buffer("offsets", offsets, persistent=False)
        self.register_buffer("places", _sinusoids(context + length, config.hidden), persistent=False)

        self.row_embedding = nn.Embedding(sum(self.counts), config.hidden)
        self.rank_embedding = nn.Linear(self.features, config.hidden)
        self.state_embedding = nn.Linear(_STATE, config.hidden)
        self.chain_embedding = nn.Embedding(sum(self.counts), config.hidden)
        for embedding in (self.row_embedding, self.chain_embedding):
            nn.init.normal_(embedding.weight, std=0.2)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.condition_layers))
        self.condition_norm = nn.LayerNorm(config.hidden)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.hidden)
        self.bin_heads = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(config.hidden),
                nn.Linear(config.hidden, config.hidden),
                nn.GELU(),
                nn.Linear(config.hidden, n),
            )
            for n in self.counts
        )
        self.residual = ResidualHead(config, self.features)

    def ranks(self, rows: Rows) -> Tensor:
        """Rows as continuous values of mean 0 and variance 1, [n, T, features]; differentiable in the positions."""
        columns = torch.arange(self.features, device=rows.bins.device)
        start, count = self.rank_start[columns, rows.bins], self.rank_count[columns, rows.bins]
        middle = torch.full_like(rows.positions[..., :1], 0.5)  # a side has no inside
        positions = torch.cat([rows.positions[..., :_SIDE], middle, rows.positions[..., _SIDE + 1 :]], dim=-1)
        return ((start + count * positions) / self.values.shape[1] - 0.5) * _UNIT_VARIANCE

    def embed(self, rows: Rows, place: int) -> Tensor:
        """Rows [n, T] that stand at ``place`` and after it -> [n, T, hidden]."""
        state = torch.asinh((rows.state - self.state_centre) / self.state_scale)
        embedded = self.row_embedding(rows.bins + self.offsets).sum(dim=2)
        embedded = embedded + self.rank_embedding(self.ranks(rows)) + self.state_embedding(state)
        return self.dropout(embedded + self.places[place : place + rows.bins.shape[1]])

    def state_after(self, before: Tensor, bins: Tensor, positions: Tensor) -> Tensor:
        """State [n, T, 4] after rows that follow the state ``before`` [n, T, 4].

        In floats, without the fee and for one range of liquidity: it tells the generator where it stands. The rows
        that leave the room are executed exactly (`pool_rows`).
        """
        columns = torch.arange(self.features, device=bins.device)
        start, count = self.rank_start[columns, bins], self.rank_count[columns, bins]
        rank = start + torch.minimum((positions * count).long(), count - 1)
        _, is_buy, log_size, move, liquidity_change = self.values[columns, rank].unbind(dim=-1)
        _, price, liquidity, reserve = before.unbind(dim=-1)
        liquidity = liquidity + liquidity_change
        usage = torch.exp(log_size - (reserve + liquidity + (price + move) / 2)).clamp(max=0.5)
        change = move + 2 * torch.log1p(torch.where(is_buy > 0.5, usage, -usage))
        return torch.stack([change, price + change, liquidity, reserve], dim=-1)

    def encode(self, condition: Rows) -> Tensor:
        """Condition rows -> keys and values for every decoder layer, [layers, 2, n, heads, context, hidden / heads]."""
        x = self.embed(condition, 0)
        for layer in self.encoder:
            x = layer(x)
        x = self.condition_norm(x)
        return torch.stack([layer.cross_attention.keys_values(x) for layer in self.decoder])  # type: ignore[operator, union-attr]

    def trunk(self, condition: Rows, window: Rows) -> Tensor:
        """What is known before each row of the window, [n, T, hidden]: the condition and the rows before it."""
        before = condition.part(slice(-1, None)).then(window.part(slice(-1)))
        keys_values = self.encode(condition)
        x = self.embed(before, self.context)
        for layer, one in zip(self.decoder, keys_values, strict=True):
            x = layer(x, one)
        return self.norm(x)

    def logits(self, known: Tensor, bins: Tensor) -> tuple[list[Tensor], Tensor]:
        """Logits of every feature given the features before it in the row, and what is known once the row's bins are.

        Args:
            known: From `trunk`, [n, T, hidden].
            bins: The rows' bins, [n, T, features].
        """
        chain = self.chain_embedding(bins + self.offsets)
        logits = []
        for k, head in enumerate(self.bin_heads):
            logits.append(head(known))
            known = known + chain[..., k, :]
        return logits, known

    def likelihood_loss(self, condition: Rows, window: Rows) -> Tensor:
        """Mean negative log likelihood of a row's bins (nats a row)."""
        logits, _ = self.logits(self.trunk(condition, window), window.bins)
        losses = [F.cross_entropy(one.flatten(0, 1), window.bins[..., k].flatten()) for k, one in enumerate(logits)]
        return torch.stack(losses).sum()

    def known_after_bins(self, condition: Rows, window: Rows) -> Tensor:
        """What the residual head is given for every row of a whole window at once, [n, T, hidden]."""
        return self.logits(self.trunk(condition, window), window.bins)[1]

    @torch.no_grad()
    def sample(self, condition: Rows, chance: torch.Generator) -> Sample:
        """Continue ``condition`` by ``length`` rows, with a cache of keys and values.

        Args:
            condition: Rows [n, context].
            chance: Source of the fresh noise of every step (on the CPU, so that devices agree).

        Returns:
            The rows, and what their positions were made from.
        """
        n, device = condition.bins.shape[0], condition.bins.device
        width = self.features + self.config.noise
        noise = torch.randn(n, self.length, width, generator=chance).to(device)
        uniform = torch.rand(n, self.length, self.features, generator=chance).to(device)
        cache = self.start(condition)
        row = condition.part(slice(-1, None))
        rows, seen = [], []
        for step in range(self.length):
            known = self.step(row, cache, step)
            bins = torch.zeros(n, 1, self.features, dtype=torch.long, device=device)
            for k, head in enumerate(self.bin_heads):
                bins[..., k] = _draw(head(known), uniform[:, step : step + 1, k])
                known = known + self.chain_embedding(bins[..., k] + self.offsets[k])
            positions = self.residual(known, noise[:, step : step + 1])
            row = Rows(bins, positions, self.state_after(row.state, bins, positions))
            rows.append(row)
            seen.append(known)
        whole = Rows(*(torch.cat(parts, dim=1) for parts in zip(*rows, strict=True)))
        return Sample(whole, torch.cat(seen, dim=1), noise)

    def start(self, condition: Rows) -> Cache:
        """The cache before the first row."""
        n, hidden, heads = condition.bins.shape[0], self.config.hidden, self.config.heads
        shape = (len(self.decoder), 2, n, heads, self.length, hidden // heads)
        return Cache(torch.zeros(shape, device=condition.bins.device), self.encode(condition))

    def step(self, before: Rows, cache: Cache, step: int) -> Tensor:
        """What is known before row ``step``, [n, 1, hidden], given the row ``before`` it [n, 1]; fills the cache."""
        x = self.embed(before, self.context + step)
        for layer, own, condition in zip(self.decoder, cache.own, cache.condition, strict=True):
            x = layer(x, condition, own, step)
        return self.norm(x)


class Critic(nn.Module):
    """Scores how real a window is, after the rows it continues. Convolutions in time, no normalisation (WGAN-GP, 4)."""

    def __init__(self, config: GanConfig, features: int) -> None:
        super().__init__()
        width = config.critic_channels
        self.layers = nn.ModuleList(
            [
                nn.Conv1d(features + 1, width, 5, padding=2),
                nn.Conv1d(width, 3 * width // 2, 5, stride=2, padding=2),
                nn.Conv1d(3 * width // 2, 2 * width, 5, stride=2, padding=2),
            ]
        )
        self.summary = nn.Linear(2 * width, width)
        self.score = nn.Linear(width, 1)
        self.kernels, self.kernel_width = 8, 4
        self.projection = nn.Linear(width, self.kernels * self.kernel_width, bias=False)
        self.batch_score = nn.Linear(self.kernels, 1)

    def activations(self, condition: Tensor, window: Tensor) -> Tensor:
        """Ranks of condition [n, context, features] and window [n, T, features] -> activations [n, width]."""
        rows = torch.cat([condition, window], dim=1)
        flag = torch.zeros_like(rows[..., :1])
        flag[:, condition.shape[1] :] = 1.0
        x = torch.cat([rows, flag], dim=-1).transpose(1, 2)
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
        return F.leaky_relu(self.summary(x.mean(dim=2)), 0.2)

    def forward(self, activations: Tensor) -> Tensor:
        """Score of every window by itself, [n]: the part that the gradient penalty holds."""
        return self.score(activations).squeeze(1)

    def compare(self, activations: Tensor) -> Tensor:
        """Minibatch discrimination: a bounded score of how close a window is to the others of its batch, [n].

        Source: Salimans et al. 2016, section 3.2. It depends on the whole batch, so it stays out of the gradient
        penalty. Distances are written as a broadcast difference, which every device can differentiate.
        """
        projected = self.projection(activations).view(len(activations), self.kernels, self.kernel_width)
        distances = (projected[:, None] - projected[None]).abs().sum(dim=3)
        others = torch.exp(-distances).sum(dim=1) - 1.0
        return torch.tanh(self.batch_score(others / max(len(activations) - 1, 1))).squeeze(1)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One bin of every distribution [n, T, bins] by the inverse of its cumulative distribution."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    drawn = (cumulative < uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(dim=-1)
    return drawn.clamp(max=logits.shape[-1] - 1)


def _sinusoids(places: int, hidden: int) -> Tensor:
    rates = torch.exp(torch.arange(0, hidden, 2) * (-math.log(1_000.0) / hidden))
    angles = torch.arange(places)[:, None] * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :hidden]

"""The generator and the critic.

The generator is a transformer decoder over the rows of a window: causal self-attention, cross-attention to the encoded
rows that the window continues, one row at a time. A row leaves it as a chain of choices, each knowing those before it:
seconds, side, where the size comes from, size, move between swaps, whether the liquidity is the one that the new price
range had before, and if not, its change. Numbers are chosen as a bin and, from fresh noise, a position inside it
(`PositionHead`). Positions are continuous, so the critic's gradient reaches them through relaxed rows.

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
from apeagent_pipeline.gan.layers import DecoderLayer, Dropout, EncoderLayer, PositionHead, sinusoids
from apeagent_pipeline.gan.swap_execution import IN_TOKEN0, REPEATED

REPEATS = 4
"""A size can be that of one of so many rows before."""

RETURN, PRICE, LIQUIDITY, RESERVE, PLACE, SIZE = range(6)
STATE = 6
"""Columns of `Rows.state`."""

_SECONDS, _SIDE, _SIZE, _MOVE, _CHANGE = range(5)
_CROSSED = 3

_UNIT_VARIANCE = math.sqrt(12.0)


class Rows(NamedTuple):
    """Rows of windows and of the histories they continue.

    Attributes:
        bins: Bins of the irreducible features, int64 [n, T, 5].
        positions: Positions inside them, in [0, 1], [n, T, 5].
        origin: Where the size comes from, as `pool_rows.Origins.size` has it, int64 [n, T].
        state: Where the market stands after each row, [n, T, STATE]: log return since the row before; log price and
            log liquidity against the last row of the history; log virtual token1 reserve at that last row; price in
            ranges of one tick spacing, counted from the lower end of the range where the history ended; log size.
    """

    bins: Tensor
    positions: Tensor
    origin: Tensor
    state: Tensor

    def part(self, rows: slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(each[:, rows] for each in self))

    def then(self, later: "Rows") -> "Rows":
        """These rows and those after them."""
        return Rows(*(torch.cat(parts, dim=1) for parts in zip(self, later, strict=True)))


class Known(NamedTuple):
    """What positions are drawn from, [n, T, hidden]: the trunk with a row's choices up to the move, and with all."""

    move: Tensor
    whole: Tensor


class Choices(NamedTuple):
    """The choices that rows were made by, seven of each.

    Attributes:
        logits: [n, T, kinds].
        chosen: int64 [n, T].
        free: Whether there was anything to choose, [n, T].
    """

    logits: list[Tensor]
    chosen: list[Tensor]
    free: list[Tensor]

    def log_likelihood(self) -> Tensor:
        """Of every row, [n, T]."""
        terms = [
            -F.cross_entropy(one.transpose(1, 2), chosen, reduction="none") * free
            for one, chosen, free in zip(self.logits, self.chosen, self.free, strict=True)
        ]
        return torch.stack(terms).sum(dim=0)


class Sample(NamedTuple):
    """Sampled rows [n, T] and what they came from.

    Attributes:
        rows: The rows.
        known: What the positions were drawn from.
        noise: And the noise that was used, [n, T, 4].
        fresh: Whether the position of a feature was drawn and not repeated, [n, T, 5].
        liquidity_back: How many rows before had the same liquidity; 0 if it is a new one, int64 [n, T].
    """

    rows: Rows
    known: Known
    noise: Tensor
    fresh: Tensor
    liquidity_back: Tensor


class Cache(NamedTuple):
    """Keys and values that later steps need, [2, heads, hidden / heads, rows, n] of every layer."""

    own: list[Tensor]
    condition: list[Tensor]


class Generator(nn.Module):
    """Writes a window row by row, given the rows it continues."""

    rank_start: Tensor
    rank_count: Tensor
    single: Tensor
    middles: Tensor
    values: Tensor
    change_edges: Tensor
    offsets: Tensor
    places: Tensor
    state_centre: Tensor
    state_scale: Tensor

    def __init__(self, config: GanConfig, bins: RowBins, context: int, length: int, tick_spacing: int) -> None:
        super().__init__()
        self.config, self.context, self.length, self.tick_spacing = config, context, length, tick_spacing
        self.counts, self.features = bins.counts, bins.features
        self.repeats = min(REPEATS, context)
        start = torch.zeros(self.features, max(self.counts), dtype=torch.long)
        count = torch.ones_like(start)
        for k, starts in enumerate(bins.starts):
            ranks = torch.from_numpy(starts)
            start[k, : len(ranks) - 1], count[k, : len(ranks) - 1] = ranks[:-1], ranks.diff()
        values = torch.from_numpy(np.stack(bins.values))
        self.register_buffer("rank_start", start, persistent=False)
        self.register_buffer("rank_count", count, persistent=False)
        single = values.gather(1, start) == values.gather(1, start + count - 1)
        self.register_buffer("single", single, persistent=False)
        middles = ((start + count / 2) / values.shape[1] - 0.5) * _UNIT_VARIANCE
        self.register_buffer("middles", middles.float(), persistent=False)
        self.register_buffer("values", values.float(), persistent=False)
        ends = torch.from_numpy(bins.starts[_CHANGE][1:-1] - 1)
        self.register_buffer("change_edges", values[_CHANGE, ends].float(), persistent=False)
        self.register_buffer("state_centre", torch.zeros(STATE))
        self.register_buffer("state_scale", torch.ones(STATE))
        kinds = [*self.counts[:_SIZE], REPEATED + self.repeats, *self.counts[_SIZE:_CHANGE], 2, self.counts[_CHANGE]]
        self.register_buffer("offsets", torch.tensor([0, *self.counts[:-1]]).cumsum(0), persistent=False)
        self.register_buffer("places", sinusoids(context + length, config.hidden), persistent=False)

        hidden = config.hidden
        self.row_embedding = nn.Embedding(sum(self.counts), hidden)
        self.origin_embedding = nn.Embedding(REPEATED + REPEATS, hidden)
        self.rank_embedding = nn.Linear(self.features, hidden)
        self.state_embedding = nn.Linear(STATE + 1, hidden)
        self.choice_embeddings = nn.ModuleList(nn.Embedding(n, hidden) for n in kinds)
        self.flow_embedding = nn.Linear(4, hidden)
        self.move_embedding = nn.Linear(2, hidden)
        self.crossing_embedding = nn.Embedding(2 * _CROSSED + 1, hidden)
        self.border_embedding = nn.Linear(4, hidden)
        for embedding in (self.row_embedding, self.origin_embedding, *self.choice_embeddings, self.crossing_embedding):
            nn.init.normal_(embedding.weight, std=0.2)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.condition_layers))
        self.condition_norm = nn.LayerNorm(hidden)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, n))
            for n in kinds
        )
        self.positions = PositionHead(hidden, 3)
        self.change_position = PositionHead(hidden, 1)

    # Rows as numbers

    def ranks(self, rows: Rows) -> Tensor:
        """Rows as continuous values of mean 0 and variance 1, [n, T, features]; differentiable in the positions."""
        columns = torch.arange(self.features, device=rows.bins.device)
        start, count = self.rank_start[columns, rows.bins], self.rank_count[columns, rows.bins]
        middle = torch.full_like(rows.positions[..., :1], 0.5)  # a side has no inside
        positions = torch.cat([rows.positions[..., :_SIDE], middle, rows.positions[..., _SIDE + 1 :]], dim=-1)
        return ((start + count * positions) / self.values.shape[1] - 0.5) * _UNIT_VARIANCE

    def seen(self, rows: Rows) -> Tensor:
        """What the critic sees of rows, [n, T, features + 7]: ranks, where sizes come from, where the market stands."""
        inside = rows.state[..., PLACE, None] - rows.state[..., PLACE, None].floor() - 0.5
        origin = torch.stack([rows.origin == IN_TOKEN0, rows.origin >= REPEATED], dim=-1).float()
        state = torch.asinh((rows.state - self.state_centre) / self.state_scale)
        columns = [state[..., k, None] for k in (RETURN, PRICE, LIQUIDITY)]
        return torch.cat([self.ranks(rows), origin, *columns, inside, inside.abs()], dim=-1)

    def value(self, feature: int, bins: Tensor, positions: Tensor) -> Tensor:
        """The train values at positions of bins of one feature, all [n, T]."""
        start, count = self.rank_start[feature, bins], self.rank_count[feature, bins]
        return self.values[feature, start + torch.minimum((positions * count).long(), count - 1)]

    def state_after(self, before: Tensor, side: Tensor, log_size: Tensor, move: Tensor, liquidity: Tensor) -> Tensor:
        """State [n, T, STATE] after rows that follow the state ``before`` [n, T, STATE].

        In floats, without the fee and for one range of liquidity: it tells the generator where it stands. The rows
        that leave the room are executed exactly (`pool_rows`).

        Args:
            before: State before the rows.
            side: 1 for a buy, [n, T].
            log_size: [n, T].
            move: [n, T].
            liquidity: Log liquidity that the rows are executed with, as in the state, [n, T].
        """
        _, price, _, reserve, place, _ = before.unbind(dim=-1)
        usage = torch.exp(log_size - (reserve + liquidity + (price + move) / 2)).clamp(max=0.5)
        change = move + 2 * torch.log1p(torch.where(side > 0, usage, -usage))
        place = place + change / (self.tick_spacing * math.log(1.0001))
        return torch.stack([change, price + change, liquidity, reserve, place, log_size], dim=-1)

    def remembered(self, past: Tensor, at: int, place: Tensor) -> tuple[Tensor, Tensor]:
        """The liquidity of the newest of the last ``context`` rows whose price stood in the same range.

        In V4 liquidity belongs to ranges of the price: where it comes back to one, it finds what was there.

        Args:
            past: States of rows from the first of the condition on, [n, rows, STATE].
            at: Which of them the first row of ``place`` is.
            place: Where the rows end, [n, T].

        Returns:
            Log liquidity as in the state, and how many rows before it was (0: in none of them), both [n, T].
        """
        index = torch.arange(past.shape[1], device=past.device)
        now = at + torch.arange(place.shape[1], device=past.device)[:, None]
        near = (index < now) & (index >= now - self.context)
        same = (past[:, None, :, PLACE].floor() == place.floor()[:, :, None]) & near
        newest = torch.where(same, index, -1).amax(dim=-1)
        level = past[..., LIQUIDITY].gather(1, newest.clamp(min=0))
        return level, torch.where(newest >= 0, now.T - newest, 0)

    # The trunk

    def embed(self, rows: Rows, place: int) -> Tensor:
        """Rows [n, T] that stand at ``place`` and after it -> [n, T, hidden]."""
        state = torch.asinh((rows.state - self.state_centre) / self.state_scale)
        inside = rows.state[..., PLACE, None] - rows.state[..., PLACE, None].floor() - 0.5
        state = torch.cat([state[..., :PLACE], state[..., SIZE:], inside, inside.abs()], dim=-1)
        embedded = self.row_embedding(rows.bins + self.offsets).sum(dim=2) + self.origin_embedding(rows.origin)
        embedded = embedded + self.rank_embedding(self.ranks(rows)) + self.state_embedding(state)
        return self.dropout(embedded + self.places[place : place + rows.bins.shape[1]])

    def encode(self, condition: Rows) -> Tensor:
        """Condition rows -> what the decoder attends to, [n, context, hidden]."""
        x = self.embed(condition, 0)
        for layer in self.encoder:
            x = layer(x)
        return self.condition_norm(x)

    def trunk(self, condition: Rows, window: Rows) -> Tensor:
        """What is known before each row of the window, [n, T, hidden]: the condition and the rows before it."""
        before = condition.part(slice(-1, None)).then(window.part(slice(-1)))
        encoded = self.encode(condition)
        x = self.embed(before, self.context)
        for layer in self.decoder:
            x = layer(x, encoded)
        return self.norm(x)

    # The choices of a row

    def _flow(self, seconds: Tensor, side: Tensor, size: Tensor) -> Tensor:
        """The numbers behind the bins chosen so far: bins alone do not say that a large buy is unlike a large sell."""
        sign = 2.0 * side - 1.0
        size = self.middles[_SIZE, size]
        return self.flow_embedding(torch.stack([self.middles[_SECONDS, seconds], sign, size, sign * size], dim=-1))

    def _moved(self, side: Tensor, move: Tensor) -> Tensor:
        move = self.middles[_MOVE, move]
        return self.move_embedding(torch.stack([move, (2.0 * side - 1.0) * move], dim=-1))

    def _border(self, before: Tensor, after: Tensor, level: Tensor, remembered: Tensor) -> Tensor:
        """What tells whether the liquidity changes: the ranges crossed, what was there, where the price ends."""
        start, end = before[..., PLACE], after[..., PLACE]
        crossed = (end.floor() - start.floor()).clamp(-_CROSSED, _CROSSED).long() + _CROSSED
        gap = torch.asinh((level - before[..., LIQUIDITY]) / self.state_scale[LIQUIDITY]) * remembered
        inside = end - end.floor() - 0.5
        features = torch.stack([remembered.float(), gap, inside, inside.abs()], dim=-1)
        return self.crossing_embedding(crossed) + self.border_embedding(features)

    def choices(self, condition: Rows, window: Rows) -> tuple[Choices, Known]:
        """The choices that make up the rows of a window, and what their positions are drawn from."""
        known = self.trunk(condition, window)
        states = torch.cat([condition.state, window.state], dim=1)
        before = states[:, self.context - 1 : -1]
        side, log_size = window.bins[..., _SIDE], window.state[..., SIZE]
        move = self.value(_MOVE, window.bins[..., _MOVE], window.positions[..., _MOVE])
        expected = self.state_after(before, side, log_size, move, before[..., LIQUIDITY])
        level, back = self.remembered(states, self.context, expected[..., PLACE])
        remembered = (back > 0) & (level != before[..., LIQUIDITY])
        liquidity = window.state[..., LIQUIDITY]
        again = remembered & (level == liquidity)
        always = torch.ones_like(again)
        of = dict(enumerate(window.bins.unbind(dim=-1)))
        chosen = [of[_SECONDS], side, window.origin, of[_SIZE], of[_MOVE], again.long(), of[_CHANGE]]
        free = [always, always, always, window.origin < REPEATED, always, remembered, ~again]
        logits = []
        for k, (head, embedding) in enumerate(zip(self.heads, self.choice_embeddings, strict=True)):
            logits.append(head(known))
            known = known + embedding(chosen[k])
            if k == _SIZE + 1:
                known = known + self._flow(chosen[0], side, chosen[3])
            if k == _MOVE + 1:
                known = known + self._moved(side, chosen[4])
                known_move = known
                known = known + self._border(before, expected, level, remembered)
        return Choices(logits, chosen, free), Known(known_move, known)

    def log_likelihood(self, condition: Rows, window: Rows) -> Tensor:
        """Log likelihood (nats) of every row, its choices and its positions, [n, T]."""
        choices, known = self.choices(condition, window)
        inside = [_SECONDS, _SIZE, _MOVE]
        open_ = ~self.single[torch.arange(self.features, device=window.bins.device), window.bins]
        drawn = torch.stack([choices.free[0], choices.free[3], choices.free[4]], dim=-1) & open_[..., inside]
        density = (self.positions.log_density(known.move, window.positions[..., inside]) * drawn).sum(dim=-1)
        change = self.change_position.log_density(known.whole, window.positions[..., _CHANGE:]).squeeze(-1)
        return choices.log_likelihood() + density + change * (choices.free[-1] & open_[..., _CHANGE])

    def relaxed(self, sample: Sample) -> Rows:
        """The sampled rows, their positions drawn again from the same noise and so differentiable."""
        positions = self.positions(sample.known.move, sample.noise[..., :3])
        change = self.change_position(sample.known.whole, sample.noise[..., 3:])
        seconds, size, move = positions.split(1, dim=-1)
        drawn = torch.cat([seconds, torch.full_like(seconds, 0.5), size, move, change], dim=-1)
        return sample.rows._replace(positions=torch.where(sample.fresh, drawn, sample.rows.positions))

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
        noise = torch.rand(n, self.length, 4, generator=chance).to(device)
        uniform = torch.rand(n, self.length, len(self.heads), generator=chance).to(device)
        cache = self.start(condition)
        # All rows so far, the condition's before the window's.
        empty = (torch.zeros(n, self.length, *part.shape[2:], dtype=part.dtype, device=device) for part in condition)
        rows = Rows(*(torch.cat([part, more], dim=1) for part, more in zip(condition, empty, strict=True)))
        origins = []
        for step in range(self.length):
            at, now = self.context + step, slice(step, step + 1)
            known = self.step(rows.part(slice(at - 1, at)), cache, step)
            row, *origin = self._next_row(rows, at, known, uniform[:, now], noise[:, now])
            for column, value in zip(rows, row, strict=True):
                column[:, at : at + 1] = value
            origins.append(origin)
        known_move, known_whole, fresh, back = (torch.cat(part, dim=1) for part in zip(*origins, strict=True))
        window = rows.part(slice(self.context, None))
        return Sample(window, Known(known_move, known_whole), noise, fresh, back)

    def _next_row(
        self, past: Rows, at: int, known: Tensor, uniform: Tensor, noise: Tensor
    ) -> tuple[Rows, Tensor, Tensor, Tensor, Tensor]:
        """Draw the row that stands at ``at`` from all rows before it; the row and the parts of a `Sample`, [n, 1]."""
        before = past.state[:, at - 1 : at]

        def choose(k: int, known: Tensor) -> Tensor:
            return _draw(self.heads[k](known), uniform[..., k])

        def note(k: int, known: Tensor, chosen: Tensor) -> Tensor:
            return known + self.choice_embeddings[k](chosen)

        seconds = choose(0, known)
        known = note(0, known, seconds)
        side = choose(1, known)
        known = note(1, known, side)
        origin = choose(2, known)
        known = note(2, known, origin)
        repeated, source = origin >= REPEATED, at - (origin - REPEATED + 1).clamp(min=0)
        size = torch.where(repeated, past.bins[..., _SIZE].gather(1, source), choose(3, known))
        known = note(3, known, size) + self._flow(seconds, side, size)
        moved = choose(4, known)
        known_move = known = note(4, known, moved) + self._moved(side, moved)

        seconds_at, size_at, moved_at = self.positions(known, noise[..., :3]).unbind(dim=-1)
        size_at = torch.where(repeated, past.positions[..., _SIZE].gather(1, source), size_at)
        log_size = torch.where(repeated, past.state[..., SIZE].gather(1, source), self.value(_SIZE, size, size_at))
        move = self.value(_MOVE, moved, moved_at)

        start = before[..., LIQUIDITY]
        expected = self.state_after(before, side, log_size, move, start)
        level, back = self.remembered(past.state, at, expected[..., PLACE])
        remembered = (back > 0) & (level != start)
        known = known + self._border(before, expected, level, remembered)
        again = choose(5, known).bool() & remembered
        known = note(5, known, again.long())
        gap = (level - start).contiguous()
        change = torch.where(again, torch.searchsorted(self.change_edges, gap), choose(6, known))
        known = note(6, known, change)
        change_at = self.change_position(known, noise[..., 3:]).squeeze(-1)
        liquidity = torch.where(again, level, start + self.value(_CHANGE, change, change_at))

        yes, middle = torch.ones_like(repeated), torch.full_like(size_at, 0.5)
        row = Rows(
            torch.stack([seconds, side, size, moved, change], dim=-1),
            torch.stack([seconds_at, middle, size_at, moved_at, change_at], dim=-1),
            origin,
            self.state_after(before, side, log_size, move, liquidity),
        )
        fresh = torch.stack([yes, yes, ~repeated, yes, ~again], dim=-1)
        return row, known_move, known, fresh, torch.where(again, back, 0)

    def start(self, condition: Rows) -> Cache:
        """The cache before the first row."""
        encoded = self.encode(condition)
        keys_values = [layer.cross_attention.keys_values_across(encoded) for layer in self.decoder]  # type: ignore[operator, union-attr]
        own = [one.new_empty(*one.shape[:3], self.length, one.shape[4]) for one in keys_values]
        return Cache(own, keys_values)

    def step(self, before: Rows, cache: Cache, step: int) -> Tensor:
        """What is known before row ``step``, [n, 1, hidden], given the row ``before`` it [n, 1]; fills the cache."""
        x = self.embed(before, self.context + step)
        for layer, own, condition in zip(self.decoder, cache.own, cache.condition, strict=True):
            x = layer.one_row(x, condition, own, step)  # type: ignore[operator]
        return self.norm(x)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """One bin of every distribution [n, T, bins] by the inverse of its cumulative distribution."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    drawn = (cumulative < uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(dim=-1)
    return drawn.clamp(max=logits.shape[-1] - 1)

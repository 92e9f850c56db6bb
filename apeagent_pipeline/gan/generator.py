"""The generator: a transformer decoder that writes the rows of a window one by one.

It has causal self-attention over the window and cross-attention to the encoded condition, the real rows that the window
continues; before both, a convolution mixes each row with the last ones. A row is a chain of choices, each conditioned
on the choices before it: seconds, side, origin of the size, size, move between swaps, whether the liquidity of the
price range is restored, and otherwise its change. A number is chosen as a bin and, from fresh noise, a position inside
the bin (`PositionHead`). What follows from the choices is told, not learnt: where the swap would end, which ranges it
crosses, and which liquidity is known there (`market_state`).

The critic reads rows as ranks: the bin's location in the feature's train distribution plus the position inside it. In
ranks every feature of real data is uniform. Positions are continuous, so the critic's gradient reaches them; choices
are discrete and learn by policy gradients (`training`).
"""

import math
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.layers import DecoderLayer, Dropout, EncoderLayer, PositionHead, sinusoids
from apeagent_pipeline.gan.market_state import (
    MAX_CROSSED,
    inside_range,
    liquidity_differs,
    liquidity_of_range,
    ranges_crossed,
    state_after,
)
from apeagent_pipeline.gan.rows import (
    LIQUIDITY,
    PRICE,
    RANGE,
    RETURN,
    SIZE,
    STATE,
    Choices,
    HiddenStates,
    Rows,
    Sample,
)
from apeagent_pipeline.gan.swap_execution import IN_TOKEN0, REPEATED, REPEATS
from apeagent_pipeline.gan.train_values import TrainValues

_SECONDS, _SIDE, _SIZE, _MOVE, _CHANGE = range(5)

_PRICE_WAVES = (2.0, 4.0, 8.0, 16.0)
"""Wavelengths, in ranges, of the sines and cosines of the price, by which attention compares the prices of two rows:
how far the price has come is what brings it back (arbitrage)."""

RECENT = 4
"""Rows that a convolution mixes before attention: what a swap depends on most stands in the last ones."""

_TAKEN = 30.0
"""Logits of a choice that cannot be made are lower by this much."""


class Cache(NamedTuple):
    """The key-value cache: [2, heads, hidden / heads, rows, n] of every layer, for self- and cross-attention."""

    window: list[Tensor]
    condition: list[Tensor]


class Generator(nn.Module):
    """Generates a window row by row, conditioned on the rows before it."""

    position_encodings: Tensor
    state_centre: Tensor
    state_scale: Tensor

    def __init__(self, config: GanConfig, bins: RowBins, context: int, length: int, tick_spacing: int) -> None:
        super().__init__()
        self.config, self.context, self.length, self.tick_spacing = config, context, length, tick_spacing
        self.range_width = tick_spacing * math.log(1.0001)
        self.counts = bins.counts
        self.repeats = min(REPEATS, context)
        self.bins = TrainValues(bins)
        self.register_buffer("state_centre", torch.zeros(STATE))
        self.register_buffer("state_scale", torch.ones(STATE))
        encodings = sinusoids(context + length, config.hidden)
        self.register_buffer("position_encodings", encodings, persistent=False)

        hidden = config.hidden
        kinds = [*self.counts[:_SIZE], REPEATED + self.repeats, *self.counts[_SIZE:_CHANGE], 2, self.counts[_CHANGE]]
        self.row_embedding = nn.Embedding(sum(self.counts), hidden)
        self.origin_embedding = nn.Embedding(REPEATED + REPEATS, hidden)
        self.rank_embedding = nn.Linear(bins.features, hidden)
        self.state_embedding = nn.Linear(STATE + 1 + 2 * len(_PRICE_WAVES), hidden)
        self.choice_embeddings = nn.ModuleList(nn.Embedding(n, hidden) for n in kinds)
        self.flow_embedding = nn.Linear(4, hidden)
        self.reach_embedding = nn.Linear(2 * MAX_CROSSED + 3, hidden)
        self.move_embedding = nn.Linear(2, hidden)
        self.crossing_embedding = nn.Embedding(2 * MAX_CROSSED + 1, hidden)
        self.border_embedding = nn.Linear(5, hidden)
        for embedding in (self.row_embedding, self.origin_embedding, *self.choice_embeddings, self.crossing_embedding):
            nn.init.normal_(embedding.weight, std=0.2)
        self.recent = nn.Conv1d(hidden, hidden, RECENT)
        self.dropout = Dropout(config.dropout)
        self.encoder = nn.ModuleList(EncoderLayer(config) for _ in range(config.condition_layers))
        self.condition_norm = nn.LayerNorm(hidden)
        self.decoder = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(hidden)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, n))
            for n in kinds
        )
        self.size_position = PositionHead(hidden, 1)
        self.positions = PositionHead(hidden, 2)
        self.change_position = PositionHead(hidden, 1)

    # Rows as numbers

    def critic_view(self, rows: Rows) -> Tensor:
        """The critic's input, [n, T, features + 7]: ranks, origin of the size, state of the market."""
        inside = inside_range(rows.state[..., RANGE, None])
        origin = torch.stack([rows.origin == IN_TOKEN0, rows.origin >= REPEATED], dim=-1).float()
        state = torch.asinh((rows.state - self.state_centre) / self.state_scale)
        columns = [state[..., k, None] for k in (RETURN, PRICE, LIQUIDITY)]
        return torch.cat([self.bins.ranks(rows), origin, *columns, inside, inside.abs()], dim=-1)

    def _state_after(self, before: Tensor, side: Tensor, log_size: Tensor, move: Tensor, liquidity: Tensor) -> Tensor:
        return state_after(before, side, log_size, move, liquidity, range_width=self.range_width)

    # The trunk

    def embed(self, rows: Rows, first: int, count: int) -> Tensor:
        """Embed the last ``count`` of the rows at the positions from ``first`` on, each with the rows just before it.

        Returns:
            [n, count, hidden].
        """
        state = torch.asinh((rows.state - self.state_centre) / self.state_scale)
        inside = inside_range(rows.state[..., RANGE, None])
        waves = 2 * math.pi * rows.state[..., RANGE, None] / torch.tensor(_PRICE_WAVES, device=state.device)
        state = torch.cat(
            [state[..., :RANGE], state[..., SIZE:], inside, inside.abs(), waves.sin(), waves.cos()], dim=-1
        )
        embedded = self.row_embedding(rows.bins + self.bins.offsets).sum(dim=2) + self.origin_embedding(rows.origin)
        embedded = embedded + self.rank_embedding(self.bins.ranks(rows)) + self.state_embedding(state)
        missing = max(count + RECENT - 1 - embedded.shape[1], 0)
        embedded = nn.functional.pad(embedded, (0, 0, missing, 0))[:, -(count + RECENT - 1) :]
        recent = self.recent(embedded.transpose(1, 2)).transpose(1, 2)
        return self.dropout(embedded[:, RECENT - 1 :] + recent + self.position_encodings[first : first + count])

    def encode(self, condition: Rows) -> Tensor:
        """Encode the condition for cross-attention, [n, context, hidden]."""
        x = self.embed(condition, 0, self.context)
        for layer in self.encoder:
            x = layer(x)
        return self.condition_norm(x)

    def trunk(self, condition: Rows, window: Rows) -> Tensor:
        """Hidden states [n, T, hidden] before each row of the window, given the condition and the rows before it."""
        before = condition.part(slice(-RECENT, None)).then(window.part(slice(-1)))
        encoded = self.encode(condition)
        x = self.embed(before, self.context, window.bins.shape[1])
        for layer in self.decoder:
            x = layer(x, encoded)
        return self.norm(x)

    # The choices of a row

    def _taken_sizes(self, past: Rows, at: int, origin: Tensor) -> Tensor:
        """What is taken off the logits of size bins, [n, T, bins].

        A size of the last rows can only come from the choice to repeat it, so a size that is not repeated is another.

        Args:
            past: Rows from the first of the condition to the one before the last of the T rows.
            at: Index in ``past`` of the first of the T rows.
            origin: Origins of the sizes of the T rows, [n, T].
        """
        index = at + torch.arange(origin.shape[1], device=origin.device)
        bins = past.bins[..., _SIZE]
        last = torch.stack([bins[:, index - age] for age in range(1, self.repeats + 1)], dim=-1)
        known = self.bins.single_valued[_SIZE, last] & (origin != IN_TOKEN0)[..., None]
        taken = torch.zeros(*origin.shape, self.counts[_SIZE], device=origin.device)
        return taken.scatter_add(-1, last, _TAKEN * known).clamp(max=_TAKEN)

    def _embed_flow(self, seconds: Tensor, side: Tensor, size: Tensor) -> Tensor:
        """Embed seconds and signed size as numbers; embeddings of bins cannot express their interaction."""
        sign = 2.0 * side - 1.0
        size = self.bins.middles[_SIZE, size]
        return self.flow_embedding(torch.stack([self.bins.middles[_SECONDS, seconds], sign, size, sign * size], dim=-1))

    def _embed_reach(self, before: Tensor, side: Tensor, log_size: Tensor) -> Tensor:
        """Embed where the swap ends if nobody trades before it.

        Only a swap that crosses several ranges is rebuilt with an error, so this says much about the move.
        """
        after = self._state_after(before, side, log_size, torch.zeros_like(log_size), before[..., LIQUIDITY])
        crossed = nn.functional.one_hot(ranges_crossed(before, after), 2 * MAX_CROSSED + 1)
        inside = inside_range(after[..., RANGE, None])
        return self.reach_embedding(torch.cat([crossed, inside, inside.abs()], dim=-1))

    def _embed_move(self, side: Tensor, move: Tensor) -> Tensor:
        move = self.bins.middles[_MOVE, move]
        return self.move_embedding(torch.stack([move, (2.0 * side - 1.0) * move], dim=-1))

    def _embed_border(self, before: Tensor, after: Tensor, move: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
        """Embed what decides the liquidity.

        Args:
            before: State before the rows.
            after: State after them at the liquidity before, as far as the ranges crossed and the price in its range go.
            move: [n, T]. A swap that crosses several ranges seems to start from another price by so much for each of
                the ranges between, if the liquidity did not change in the last of them but in an earlier one.
            known: The earlier liquidity of the range and whether it can be restored, [n, T] each.
        """
        earlier, restorable = known
        between = (after[..., RANGE].floor() - before[..., RANGE].floor()).abs() - 1
        moved = torch.where(between > 0, move / (between.clamp(min=1) * self.range_width), 0.0)
        moved = moved * (after[..., RANGE] - before[..., RANGE]).sign()
        moved = torch.asinh(moved / self.state_scale[LIQUIDITY])
        gap = torch.asinh((earlier - before[..., LIQUIDITY]) / self.state_scale[LIQUIDITY]) * restorable
        inside = inside_range(after[..., RANGE])
        features = torch.stack([restorable.float(), gap, inside, inside.abs(), moved], dim=-1)
        return self.crossing_embedding(ranges_crossed(before, after)) + self.border_embedding(features)

    def choices(self, condition: Rows, window: Rows) -> tuple[Choices, HiddenStates]:
        """The choices that make up the rows of a window, and the hidden states of their positions."""
        hidden = self.trunk(condition, window)
        states = torch.cat([condition.state, window.state], dim=1)
        before = states[:, self.context - 1 : -1]
        side, log_size = window.bins[..., _SIDE], window.state[..., SIZE]
        move = self.bins.value(_MOVE, window.bins[..., _MOVE], window.positions[..., _MOVE])
        expected = self._state_after(before, side, log_size, move, before[..., LIQUIDITY])
        earlier, back = liquidity_of_range(states, self.context, expected[..., RANGE])
        restorable = (back > 0) & liquidity_differs(earlier, before[..., LIQUIDITY])
        restored = restorable & ~liquidity_differs(earlier, window.state[..., LIQUIDITY])
        always = torch.ones_like(restored)
        seconds, _, size, moved, change = window.bins.unbind(dim=-1)
        chosen = [seconds, side, window.origin, size, moved, restored.long(), change]
        free = [always, always, always, window.origin < REPEATED, always, restorable, ~restored]
        taken = self._taken_sizes(condition.then(window).part(slice(-1)), self.context, window.origin)
        logits = []
        for k, (head, embedding) in enumerate(zip(self.heads, self.choice_embeddings, strict=True)):
            logits.append(head(hidden) - taken if k == _SIZE + 1 else head(hidden))
            hidden = hidden + embedding(chosen[k])
            if k == _SIZE + 1:
                hidden_size = hidden = hidden + self._embed_flow(seconds, side, size)
                hidden = hidden + self._embed_reach(before, side, log_size)
            if k == _MOVE + 1:
                hidden = hidden + self._embed_move(side, moved)
                hidden_move = hidden
                hidden = hidden + self._embed_border(before, expected, move, (earlier, restorable))
        return Choices(logits, chosen, free), HiddenStates(hidden_size, hidden_move, hidden)

    def log_likelihood(self, condition: Rows, window: Rows) -> Tensor:
        """Log likelihood (nats) of every row, of its choices and positions, [n, T]."""
        choices, hidden = self.choices(condition, window)
        features = [_SECONDS, _SIZE, _MOVE]
        spread = ~self.bins.in_single_valued_bin(window)
        drawn = torch.stack([choices.free[0], choices.free[3], choices.free[4]], dim=-1) & spread[..., features]
        density = self._densities(hidden, window.positions[..., features])
        density = (density * drawn).sum(dim=-1)
        change = self.change_position.log_density(hidden.all, window.positions[..., _CHANGE:]).squeeze(-1)
        return choices.log_likelihood() + density + change * (choices.free[-1] & spread[..., _CHANGE])

    def _densities(self, hidden: HiddenStates, positions: Tensor) -> Tensor:
        """Log densities [n, T, 3] of the positions of seconds, size and move."""
        size = self.size_position.log_density(hidden.size, positions[..., 1:2])
        seconds, move = self.positions.log_density(hidden.move, positions[..., [0, 2]]).split(1, dim=-1)
        return torch.cat([seconds, size, move], dim=-1)

    def relaxed(self, sample: Sample) -> Rows:
        """The sampled rows with positions recomputed from their noise, so that they are differentiable."""
        size = self.size_position(sample.hidden.size, sample.noise[..., 1:2])
        seconds, move = self.positions(sample.hidden.move, sample.noise[..., [0, 2]]).split(1, dim=-1)
        change = self.change_position(sample.hidden.all, sample.noise[..., 3:])
        drawn = torch.cat([seconds, torch.full_like(seconds, 0.5), size, move, change], dim=-1)
        return sample.rows._replace(positions=torch.where(sample.fresh, drawn, sample.rows.positions))

    # Sampling

    @torch.no_grad()
    def sample(self, condition: Rows, torch_rng: torch.Generator) -> Sample:
        """Continue ``condition`` by ``length`` rows, with a key-value cache.

        Args:
            condition: Rows [n, context].
            torch_rng: Source of all noise; on the CPU, so that every device draws the same.
        """
        n, device = condition.bins.shape[0], condition.bins.device
        noise = torch.rand(n, self.length, 4, generator=torch_rng).to(device)
        uniform = torch.rand(n, self.length, len(self.heads), generator=torch_rng).to(device)
        cache = self.prefill(condition)
        # All rows so far: the condition, then the window.
        empty = (torch.zeros(n, self.length, *part.shape[2:], dtype=part.dtype, device=device) for part in condition)
        rows = Rows(*(torch.cat([part, more], dim=1) for part, more in zip(condition, empty, strict=True)))
        steps = []
        for step in range(self.length):
            at, now = self.context + step, slice(step, step + 1)
            hidden = self.decode_step(rows.part(slice(max(at - RECENT, 0), at)), cache, step)
            row, states, fresh, back = self._next_row(rows, at, hidden, uniform[:, now], noise[:, now])
            for column, value in zip(rows, row, strict=True):
                column[:, at : at + 1] = value
            steps.append((*states, fresh, back))
        *hidden_states, fresh, back = (torch.cat(part, dim=1) for part in zip(*steps, strict=True))
        return Sample(rows.part(slice(self.context, None)), HiddenStates(*hidden_states), noise, fresh, back)

    def _next_row(
        self, past: Rows, at: int, hidden: Tensor, uniform: Tensor, noise: Tensor
    ) -> tuple[Rows, HiddenStates, Tensor, Tensor]:
        """Draw row ``at`` given all rows before it: the row, its hidden states, ``fresh`` and ``liquidity_back``."""
        before = past.state[:, at - 1 : at]

        def draw(k: int, hidden: Tensor) -> Tensor:
            return _draw(self.heads[k](hidden), uniform[..., k])

        def embed(k: int, hidden: Tensor, chosen: Tensor) -> Tensor:
            return hidden + self.choice_embeddings[k](chosen)

        seconds = draw(0, hidden)
        hidden = embed(0, hidden, seconds)
        side = draw(1, hidden)
        hidden = embed(1, hidden, side)
        origin = draw(2, hidden)
        hidden = embed(2, hidden, origin)
        repeated, source = origin >= REPEATED, at - (origin - REPEATED + 1).clamp(min=0)
        taken = self._taken_sizes(past.part(slice(at)), at, origin)
        drawn = _draw(self.heads[3](hidden) - taken, uniform[..., 3])
        size = torch.where(repeated, past.bins[..., _SIZE].gather(1, source), drawn)
        hidden_size = hidden = embed(3, hidden, size) + self._embed_flow(seconds, side, size)
        size_at = self._new_size_position(hidden, size, past.state[:, at - self.repeats : at, SIZE], noise)
        size_at = torch.where(repeated, past.positions[..., _SIZE].gather(1, source), size_at)
        log_size = torch.where(repeated, past.state[..., SIZE].gather(1, source), self.bins.value(_SIZE, size, size_at))

        hidden = hidden + self._embed_reach(before, side, log_size)
        moved = draw(4, hidden)
        hidden_move = hidden = embed(4, hidden, moved) + self._embed_move(side, moved)
        seconds_at, moved_at = self.positions(hidden, noise[..., [0, 2]]).unbind(dim=-1)
        move = self.bins.value(_MOVE, moved, moved_at)

        start = before[..., LIQUIDITY]
        expected = self._state_after(before, side, log_size, move, start)
        earlier, back = liquidity_of_range(past.state, at, expected[..., RANGE])
        restorable = (back > 0) & liquidity_differs(earlier, start)
        hidden = hidden + self._embed_border(before, expected, move, (earlier, restorable))
        restored = draw(5, hidden).bool() & restorable
        hidden = embed(5, hidden, restored.long())
        gap = earlier - start
        change = torch.where(restored, self.bins.bin_of(_CHANGE, gap), draw(6, hidden))
        hidden = embed(6, hidden, change)
        change_at = self.change_position(hidden, noise[..., 3:]).squeeze(-1)
        liquidity = torch.where(restored, earlier, start + self.bins.value(_CHANGE, change, change_at))

        yes, middle = torch.ones_like(repeated), torch.full_like(size_at, 0.5)
        row = Rows(
            torch.stack([seconds, side, size, moved, change], dim=-1),
            torch.stack([seconds_at, middle, size_at, moved_at, change_at], dim=-1),
            origin,
            self._state_after(before, side, log_size, move, liquidity),
        )
        fresh = torch.stack([yes, yes, ~repeated, yes, ~restored], dim=-1)
        return row, HiddenStates(hidden_size, hidden_move, hidden), fresh, torch.where(restored, back, 0)

    def _new_size_position(self, hidden: Tensor, size: Tensor, last: Tensor, noise: Tensor) -> Tensor:
        """Position of a size in its bin, [n, 1], so that it is another than the ``last`` ones [n, rows].

        Noise that gives one of them is shifted by a half, in ``noise`` too.
        """
        again = self.bins.value(_SIZE, size, self.size_position(hidden, noise[..., 1:2]).squeeze(-1)) == last
        noise[..., 1] = torch.where(again.any(dim=-1, keepdim=True), (noise[..., 1] + 0.5) % 1, noise[..., 1])
        return self.size_position(hidden, noise[..., 1:2]).squeeze(-1)

    def prefill(self, condition: Rows) -> Cache:
        """The key-value cache before the first row of the window."""
        encoded = self.encode(condition)
        layers = [cast("DecoderLayer", layer) for layer in self.decoder]
        across = [layer.cross_attention.keys_values_batch_last(encoded) for layer in layers]
        return Cache([one.new_empty(*one.shape[:3], self.length, one.shape[4]) for one in across], across)

    def decode_step(self, before: Rows, cache: Cache, step: int) -> Tensor:
        """Hidden state before row ``step``, [n, 1, hidden]; extends the cache.

        Args:
            before: The last `RECENT` rows before it, or fewer if there are no more.
            cache: The key-value cache of the rows before the last of these.
            step: Number of the row in its window.
        """
        x = self.embed(before, self.context + step, 1)
        for layer, window, condition in zip(self.decoder, cache.window, cache.condition, strict=True):
            x = cast("DecoderLayer", layer).decode_step(x, condition, window, step)
        return self.norm(x)


def _draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Draw from every distribution [n, T, kinds] by inverting its cumulative distribution at ``uniform`` [n, T]."""
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    drawn = (cumulative < uniform.unsqueeze(-1) * cumulative[..., -1:]).sum(dim=-1)
    return drawn.clamp(max=logits.shape[-1] - 1)

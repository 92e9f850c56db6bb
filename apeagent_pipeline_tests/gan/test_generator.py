import numpy as np
import pytest
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.critic import Critic
from apeagent_pipeline.gan.generator import RECENT, Generator
from apeagent_pipeline.gan.layers import PositionHead
from apeagent_pipeline.gan.rows import LIQUIDITY, RANGE, RESERVE, STATE, Rows
from apeagent_pipeline.gan.swap_execution import REPEATED

CONTEXT, LENGTH = 6, 7
CONFIG = GanConfig(hidden=16, layers=2, heads=4, bins=[6, 2, 8, 8, 6], critic_channels=8)


@pytest.fixture(scope="module")
def bins():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 5))
    rows[:, 1] = rows[:, 1] > 0
    rows[:, 3] *= 3e-4  # a third of a range
    return RowBins.fit(rows, CONFIG.bins)


@pytest.fixture
def generator(bins):
    torch.manual_seed(0)
    generator = Generator(CONFIG, bins, CONTEXT, LENGTH, tick_spacing=10).eval()
    # At initialisation the position heads ignore the hidden state.
    for head in (generator.size_position, generator.positions, generator.change_position):
        torch.nn.init.normal_(head.outer.weight, std=0.3)
    return generator


def random_rows(bins, n, rows, seed=0):
    torch_rng = torch.Generator().manual_seed(seed)
    columns = [torch.randint(count, (n, rows), generator=torch_rng) for count in bins.counts]
    origin = torch.randint(REPEATED, (n, rows), generator=torch_rng)
    state = torch.randn(n, rows, STATE, generator=torch_rng)
    return Rows(torch.stack(columns, dim=2), torch.rand(n, rows, 5, generator=torch_rng), origin, state)


def test_decoding_with_the_cache_gives_the_hidden_states_of_the_whole_window(generator, bins):
    condition, window = random_rows(bins, 3, CONTEXT), random_rows(bins, 3, LENGTH, seed=1)
    with torch.no_grad():
        whole = generator.trunk(condition, window)
        cache = generator.prefill(condition)
        rows = condition.then(window)
        for step in range(LENGTH):
            before = rows.part(slice(CONTEXT + step - RECENT, CONTEXT + step))
            hidden = generator.decode_step(before, cache, step)
            torch.testing.assert_close(hidden, whole[:, step : step + 1], rtol=1e-4, atol=1e-5)


def test_relaxed_rows_have_the_positions_of_the_sample(generator, bins):
    sample = generator.sample(random_rows(bins, 4, CONTEXT), torch.Generator().manual_seed(3))
    inside = [0, 2, 3, 4]  # a side has no inside
    relaxed = generator.relaxed(sample).positions[..., inside]
    torch.testing.assert_close(relaxed, sample.rows.positions[..., inside], rtol=1e-4, atol=1e-5)


def test_sampling_and_likelihood_agree_on_hidden_states_and_choices(generator, bins):
    condition = random_rows(bins, 16, CONTEXT)
    sample = generator.sample(condition, torch.Generator().manual_seed(3))
    choices, hidden = generator.choices(condition, sample.rows)
    torch.testing.assert_close(hidden.move, sample.hidden.move, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden.size, sample.hidden.size, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(hidden.all, sample.hidden.all, rtol=1e-4, atol=1e-5)
    assert torch.equal(choices.chosen[5].bool(), sample.liquidity_back > 0)
    assert choices.log_likelihood().isfinite().all()


def test_a_repeated_size_and_a_restored_liquidity_equal_those_of_their_source_row(generator, bins):
    generator.heads[2][-1].bias.data[REPEATED + 1] = 20.0  # always the size of two rows before
    generator.heads[5][-1].bias.data[1] = 20.0  # always the liquidity the range had
    condition = random_rows(bins, 16, CONTEXT)
    condition.state[..., RESERVE] = 20.0  # too deep for the swaps to move the price
    sample = generator.sample(condition, torch.Generator().manual_seed(3))
    rows = condition.then(sample.rows)
    assert torch.equal(rows.bins[:, CONTEXT:, 2], rows.bins[:, CONTEXT - 2 : -2, 2])
    assert (sample.liquidity_back > 0).any()
    for window, step in sample.liquidity_back.nonzero().tolist():
        at = CONTEXT + step
        source = at - int(sample.liquidity_back[window, step])
        # It is that of the source row and what was added since without leaving a range.
        liquidity, ranges = rows.state[window, :, LIQUIDITY].exp(), rows.state[window, :, RANGE].floor()
        added = (liquidity.diff() * (ranges.diff() == 0))[source : at - 1].sum()
        torch.testing.assert_close(liquidity[at], liquidity[source] + added, rtol=1e-4, atol=1e-5)
        between = rows.state[window, source + 1 : at, RANGE].floor()
        assert rows.state[window, source, RANGE].floor() not in between


def test_a_row_does_not_see_itself_or_later_rows(generator, bins):
    condition, window = random_rows(bins, 2, CONTEXT), random_rows(bins, 2, LENGTH, seed=1)
    other = random_rows(bins, 2, LENGTH, seed=2)
    changed = window.part(slice(4)).then(other.part(slice(4, None)))
    with torch.no_grad():
        one, two = generator.trunk(condition, window), generator.trunk(condition, changed)
    torch.testing.assert_close(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])


def test_the_hidden_states_depend_on_the_condition(generator, bins):
    window = random_rows(bins, 2, LENGTH)
    with torch.no_grad():
        one = generator.trunk(random_rows(bins, 2, CONTEXT, seed=1), window)
        two = generator.trunk(random_rows(bins, 2, CONTEXT, seed=2), window)
    assert not torch.allclose(one, two)


def test_every_step_has_fresh_noise(generator, bins):
    condition = random_rows(bins, 1, CONTEXT)
    same = Rows(*(part.repeat_interleave(64, dim=0) for part in condition))
    sample = generator.sample(same, torch.Generator().manual_seed(0))
    rows, noise = sample.rows, sample.noise
    assert rows.bins.flatten(1).unique(dim=0).shape[0] > 60
    assert noise.flatten().unique().numel() == noise.numel()


def test_before_training_positions_are_uniform():
    torch.manual_seed(0)
    head = PositionHead(CONFIG.hidden, 3)
    positions = head(torch.randn(20_000, CONFIG.hidden), torch.rand(20_000, 3))
    for quantile in (0.1, 0.5, 0.9):
        assert (positions < quantile).float().mean().item() == pytest.approx(quantile, abs=0.02)


def test_drawn_positions_follow_their_density():
    torch.manual_seed(0)
    head = PositionHead(CONFIG.hidden, 1)
    torch.nn.init.normal_(head.outer.weight, std=1.0)
    hidden = torch.randn(1, CONFIG.hidden)
    grid = (torch.arange(2_000) + 0.5)[:, None] / 2_000
    with torch.no_grad():
        density = head.log_density(hidden.expand(2_000, -1), grid).exp().flatten()
        drawn = head(hidden.expand(50_000, -1), torch.rand(50_000, 1)).flatten()
    assert density.mean().item() == pytest.approx(1.0, abs=0.02)
    expected = (density * grid.flatten()).mean().item()
    assert drawn.mean().item() == pytest.approx(expected, abs=0.01)


def test_the_critics_gradient_reaches_the_positions(generator, bins):
    condition = random_rows(bins, 4, CONTEXT)
    critic = Critic(CONFIG, 5)
    relaxed = generator.relaxed(generator.sample(condition, torch.Generator().manual_seed(0)))
    activations = critic.activations(generator.critic_view(condition).detach(), generator.critic_view(relaxed))
    critic.window_scores(activations).mean().backward()
    assert generator.positions.outer.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())


def test_the_score_under_the_gradient_penalty_does_not_depend_on_the_batch(generator, bins):
    condition, window = random_rows(bins, 6, CONTEXT), random_rows(bins, 6, LENGTH)
    critic = Critic(CONFIG, 5)
    views = generator.critic_view(condition), generator.critic_view(window)
    whole = critic(critic.activations(*views))
    alone = critic(critic.activations(views[0][:1], views[1][:1]))
    torch.testing.assert_close(whole[:1], alone)
    batched = critic.compare(critic.activations(*views))
    assert not torch.allclose(batched[:1], critic.compare(critic.activations(views[0][:2], views[1][:2]))[:1])


def test_the_score_of_a_row_depends_on_no_later_row(generator, bins):
    condition, window = random_rows(bins, 2, CONTEXT), random_rows(bins, 2, LENGTH, seed=1)
    changed = window.part(slice(4)).then(random_rows(bins, 2, LENGTH, seed=2).part(slice(4, None)))
    critic = Critic(CONFIG, 5)
    one, two = (
        critic(critic.activations(generator.critic_view(condition), generator.critic_view(w)))
        for w in (window, changed)
    )
    torch.testing.assert_close(one[:, :4], two[:, :4])
    assert not torch.allclose(one[:, 4:], two[:, 4:])


def test_the_critic_stays_small():
    parameters = sum(p.numel() for p in Critic(GanConfig(), 5).parameters())
    assert 100_000 <= parameters <= 200_000


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="hidden=60 is not a multiple of heads=8"):
        GanConfig(hidden=60)

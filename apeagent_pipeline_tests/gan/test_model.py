import numpy as np
import pytest
import torch

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.model import Critic, Generator, Rows

CONTEXT, LENGTH = 6, 7
CONFIG = GanConfig(hidden=16, layers=2, heads=4, noise=2, bins=[6, 2, 8, 8, 6], critic_channels=8)


@pytest.fixture(scope="module")
def bins():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(300, 5))
    rows[:, 1] = rows[:, 1] > 0
    return RowBins.fit(rows, CONFIG.bins)


@pytest.fixture
def generator(bins):
    torch.manual_seed(0)
    generator = Generator(CONFIG, bins, CONTEXT, LENGTH).eval()
    # Untrained, the residual head ignores what it is given.
    torch.nn.init.normal_(generator.residual.outer.weight, std=0.3)
    return generator


def random_rows(bins, n, rows, seed=0):
    chance = torch.Generator().manual_seed(seed)
    columns = [torch.randint(count, (n, rows), generator=chance) for count in bins.counts]
    state = torch.randn(n, rows, 4, generator=chance)
    return Rows(torch.stack(columns, dim=2), torch.rand(n, rows, 5, generator=chance), state)


def test_the_cache_gives_what_the_whole_window_gives(generator, bins):
    condition, window = random_rows(bins, 3, CONTEXT), random_rows(bins, 3, LENGTH, seed=1)
    with torch.no_grad():
        whole = generator.trunk(condition, window)
        cache = generator.start(condition)
        before = condition.part(slice(-1, None))
        for step in range(LENGTH):
            known = generator.step(before, cache, step)
            torch.testing.assert_close(known, whole[:, step : step + 1], rtol=1e-4, atol=1e-5)
            before = window.part(slice(step, step + 1))


def test_sampled_positions_are_those_the_critic_trains(generator, bins):
    condition = random_rows(bins, 4, CONTEXT)
    sample = generator.sample(condition, torch.Generator().manual_seed(3))
    known = generator.known_after_bins(condition, sample.rows)
    torch.testing.assert_close(known, sample.known, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(generator.residual(known, sample.noise), sample.rows.positions, rtol=1e-4, atol=1e-5)


def test_a_row_does_not_see_itself_or_later_rows(generator, bins):
    condition, window = random_rows(bins, 2, CONTEXT), random_rows(bins, 2, LENGTH, seed=1)
    other = random_rows(bins, 2, LENGTH, seed=2)
    changed = window.part(slice(4)).then(other.part(slice(4, None)))
    with torch.no_grad():
        one, two = generator.trunk(condition, window), generator.trunk(condition, changed)
    torch.testing.assert_close(one[:, :5], two[:, :5])
    assert not torch.allclose(one[:, 5:], two[:, 5:])


def test_the_history_matters(generator, bins):
    window = random_rows(bins, 2, LENGTH)
    with torch.no_grad():
        one = generator.trunk(random_rows(bins, 2, CONTEXT, seed=1), window)
        two = generator.trunk(random_rows(bins, 2, CONTEXT, seed=2), window)
    assert not torch.allclose(one, two)


def test_every_step_has_fresh_noise(generator, bins):
    condition = random_rows(bins, 1, CONTEXT)
    same = Rows(*(part.repeat(64, 1, 1) for part in condition))
    rows, _, noise = generator.sample(same, torch.Generator().manual_seed(0))
    assert rows.bins.flatten(1).unique(dim=0).shape[0] > 60
    assert noise.flatten().unique().numel() == noise.numel()


def test_before_training_positions_are_uniform(bins):
    generator = Generator(CONFIG, bins, CONTEXT, LENGTH).eval()
    known = torch.randn(20_000, CONFIG.hidden)
    noise = torch.randn(20_000, 5 + CONFIG.noise)
    positions = generator.residual(known, noise)
    for quantile in (0.1, 0.5, 0.9):
        assert (positions < quantile).float().mean().item() == pytest.approx(quantile, abs=0.02)


def test_the_critic_sees_positions_with_gradient(generator, bins):
    condition, window = random_rows(bins, 4, CONTEXT), random_rows(bins, 4, LENGTH)
    critic = Critic(CONFIG, 5)
    noise = torch.randn(4, LENGTH, 5 + CONFIG.noise)
    relaxed = window._replace(positions=generator.residual(generator.known_after_bins(condition, window), noise))
    activations = critic.activations(generator.ranks(condition), generator.ranks(relaxed))
    (critic(activations) + critic.compare(activations)).mean().backward()
    assert generator.residual.outer.weight.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in critic.parameters())


def test_the_score_under_the_gradient_penalty_does_not_depend_on_the_batch(generator, bins):
    condition, window = random_rows(bins, 6, CONTEXT), random_rows(bins, 6, LENGTH)
    critic = Critic(CONFIG, 5)
    ranks = generator.ranks(condition), generator.ranks(window)
    whole = critic(critic.activations(*ranks))
    alone = critic(critic.activations(ranks[0][:1], ranks[1][:1]))
    torch.testing.assert_close(whole[:1], alone)
    batched = critic.compare(critic.activations(*ranks))
    assert not torch.allclose(batched[:1], critic.compare(critic.activations(ranks[0][:2], ranks[1][:2]))[:1])


def test_the_critic_stays_small():
    parameters = sum(p.numel() for p in Critic(GanConfig(), 5).parameters())
    assert 100_000 <= parameters <= 200_000


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="hidden=60 is no multiple of heads=8"):
        GanConfig(hidden=60)

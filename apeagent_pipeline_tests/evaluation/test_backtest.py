from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from apeagent_pipeline.amm.pool_spec import BASE_ETH_USDC
from apeagent_pipeline.amm.price import sqrt_price_x96_from_price
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer
from apeagent_pipeline.distillation.execution import Holding
from apeagent_pipeline.evaluation.backtest import replay as room
from apeagent_pipeline.evaluation.backtest.config import BacktestConfig
from apeagent_pipeline.evaluation.backtest.market import BacktestError, make_market, simulate
from apeagent_pipeline.evaluation.backtest.page import max_drawdown, sharpe_interval
from apeagent_pipeline.evaluation.backtest.replay import backtest
from apeagent_pipeline.evaluation.backtest.strategies import hold, random_like, rebalance
from apeagent_pipeline.student.generation import Answer

CONFIG = BacktestConfig(window=8, every=3, decisions=4, episodes=3, random_runs=5)
LIQUIDITY = 10**17


def market_rows(n=60, liquidity=LIQUIDITY, prices=None):
    rng = np.random.default_rng(4)
    prices = 2500 * np.exp(np.cumsum(rng.normal(0, 0.002, n))) if prices is None else np.asarray(prices)
    sizes = rng.uniform(10, 5000, n)
    return pl.DataFrame(
        {
            "block_number": np.arange(n) + 25_000_000,
            "log_index": np.zeros(n, dtype=int),
            "block_timestamp": [datetime(2025, 2, 1, tzinfo=UTC) + timedelta(seconds=30 * i) for i in range(n)],
            "seconds_since_previous": np.full(n, 30),
            "tick": np.zeros(n, dtype=int),
            "price": prices,
            "volume_usdc": sizes,
            "volume_ma": np.full(n, 2000.0),
            "tick_change": np.zeros(n, dtype=int),
            "liquidity": [str(liquidity)] * n,
            "liquidity_usage": np.full(n, 0.001),
            "sqrt_price_x96": [str(sqrt_price_x96_from_price(float(p), BASE_ETH_USDC)) for p in prices],
            "side": rng.choice(["BUY", "SELL"], n),
        }
    )


def always(side, amount):
    return lambda decision, holdings: [DraftAnswer((), side, amount, "ETH")] * len(holdings)


def test_holding_earns_half_of_what_the_price_does():
    market = make_market(market_rows(), BASE_ETH_USDC, CONFIG)
    run = simulate(market, hold, 10_000)
    paths = market.price_paths()
    assert run.equity == pytest.approx(0.5 + 0.5 * paths / paths[:, :1], abs=1e-6)
    assert run.turnover.sum() == run.fees.sum() == run.costs.sum() == 0


def test_episodes_do_not_overlap_and_the_last_trade_still_has_a_next_swap():
    features = market_rows()
    market = make_market(features, BASE_ETH_USDC, CONFIG)
    first = [market.row(e, 0) for e in range(3)]
    last = [market.row(e, CONFIG.decisions) for e in range(3)]
    assert all(end <= start for end, start in zip(last, first[1:], strict=False))
    assert last[-1] < features.height
    assert market.row(2, CONFIG.decisions - 1) + 1 < features.height


def test_fee_and_price_impact_are_paid_to_the_cent():
    flat = market_rows(prices=np.full(60, 2500.0))
    market = make_market(flat, BASE_ETH_USDC, CONFIG)
    run = simulate(market, always("SELL", 0.1), 10_000)
    # 0.4 ETH sold in each episode at 2500: 1000 USDC of 10,000, of which the fee takes 0.05 %.
    assert run.turnover == pytest.approx(0.1, rel=1e-3)
    assert run.fees == pytest.approx(0.1 * 0.0005, rel=1e-6)
    assert (run.costs > run.fees).all()
    assert run.returns == pytest.approx(-run.costs, abs=1e-9)
    deep = simulate(make_market(market_rows(prices=np.full(60, 2500.0), liquidity=10**22), BASE_ETH_USDC, CONFIG),
                    always("SELL", 0.1), 10_000)  # fmt: skip
    assert deep.costs == pytest.approx(deep.fees, rel=1e-4)


def test_a_decision_is_executed_after_the_next_swap_never_at_the_price_it_saw():
    prices = np.full(60, 2500.0)
    market = make_market(market_rows(prices=prices), BASE_ETH_USDC, CONFIG)
    seen = market.row(0, 0)
    prices[seen + 1 :] = 3000.0  # the price jumps right after the decision
    market = make_market(market_rows(prices=prices), BASE_ETH_USDC, CONFIG)

    def buy_once(decision, holdings):
        action = DraftAnswer((), "BUY", 0.5, "ETH") if decision == 0 else DraftAnswer((), "HOLD")
        return [action, *[DraftAnswer((), "HOLD")] * (len(holdings) - 1)]

    bought = simulate(market, buy_once, 10_000)
    held = simulate(market, hold, 10_000)
    assert bought.returns[0] < held.returns[0]  # bought at 3000, nothing gained from the jump


def test_what_a_decision_sees_ends_with_the_swap_before_its_execution():
    features = market_rows()
    market = make_market(features, BASE_ETH_USDC, CONFIG)
    holdings = [Holding(10**18, 2500 * 10**6)] * 3
    before = room.decision_states(market, 1, holdings, CONFIG)["prompt"].to_list()
    later = features.with_columns(
        price=pl.when(pl.int_range(pl.len()) > market.row(0, 1)).then(9999.0).otherwise(pl.col("price"))
    )
    changed = room.decision_states(make_market(later, BASE_ETH_USDC, CONFIG), 1, holdings, CONFIG)["prompt"].to_list()
    assert changed[0] == before[0]
    assert changed[1] != before[1]


def test_a_prompt_never_says_more_than_is_held():
    market = make_market(market_rows(), BASE_ETH_USDC, CONFIG)
    holdings = [
        Holding(1_999_999 * 10**12, 1234 * 10**6 + 999_999),
        Holding(0, 10**6),
        Holding(10**18, 0),
    ]
    states = room.decision_states(market, 0, holdings, CONFIG)
    assert states["eth"].to_list() == [1.999, 0.0, 1.0]
    assert states["usdc"].to_list() == [1234.99, 1.0, 0.0]


def test_trades_beyond_the_holdings_and_unreadable_answers_trade_nothing():
    market = make_market(market_rows(), BASE_ETH_USDC, CONFIG)
    greedy = simulate(market, always("BUY", 100.0), 10_000)
    assert greedy.refused == 12
    silent = simulate(market, lambda decision, holdings: [None] * len(holdings), 10_000)
    assert silent.unreadable == 12
    for run in (greedy, silent):
        assert run.equity == pytest.approx(simulate(market, hold, 10_000).equity)


def test_the_random_trader_has_the_same_turnover():
    market = make_market(market_rows(), BASE_ETH_USDC, CONFIG)
    run = simulate(market, always("SELL", 0.2), 10_000)
    random = simulate(market, random_like(run, market, np.random.default_rng(1)), 10_000)
    assert random.turnover == pytest.approx(run.turnover, rel=0.02)
    assert (np.sign(random.eth_traded) > 0).any()


def test_rebalancing_goes_back_to_half_and_half_by_the_price_it_saw():
    prices = np.full(60, 2500.0)
    prices[: CONFIG.window - 1] = 1000.0
    market = make_market(market_rows(prices=prices, liquidity=10**22), BASE_ETH_USDC, CONFIG)
    holdings = [
        Holding(3 * 10**18, 2500 * 10**6),
        Holding(10**18, 2500 * 10**6),
        Holding(0, 5000 * 10**6),
    ]
    sold, held, bought = rebalance(market)(0, holdings)
    assert (sold.side, sold.amount) == ("SELL", 1.0)
    assert held.side == "HOLD"
    assert (bought.side, bought.amount) == ("BUY", 1.0)


def test_the_sharpe_interval_holds_zero_for_noise_and_not_for_a_steady_gain():
    rng = np.random.default_rng(3)
    noise = np.exp(np.cumsum(rng.normal(0, 0.01, (4, 60)), axis=1))
    steady = np.exp(np.cumsum(rng.normal(0.01, 0.01, (4, 60)), axis=1))
    low, high = sharpe_interval(noise, 2, 60.0, seed=1)
    assert low < 0 < high
    assert sharpe_interval(steady, 2, 60.0, seed=1)[0] > 0
    assert sharpe_interval(steady, 2, 60.0, seed=1, against=noise)[0] > 0
    assert sharpe_interval(np.ones((4, 60)), 2, 60.0, seed=1) is None


def test_drawdown_is_the_largest_fall_from_a_peak():
    assert max_drawdown(np.array([[1.0, 1.2, 0.9, 1.1], [1.0, 1.1, 1.2, 1.3]])) == pytest.approx([0.25, 0.0])


def test_the_report_compares_the_student_with_hold_random_and_rules(monkeypatch):
    class Scripted:
        off = False

        @classmethod
        def load(cls, base, adapter):
            return cls()

        def answers(self, prompts, *, max_new_tokens):
            assert prompts[0][0]["role"] == "system"
            said = "I cannot say." if self.off else "trend up\n####\nAPE OUT 0.05 ETH"
            return [Answer(said, 20, "end_token")] * len(prompts)

        @contextmanager
        def adapter_off(self):
            self.off = True
            yield

    monkeypatch.setattr(room, "Student", Scripted)
    told = []
    report = backtest(
        market_rows(),
        None,
        None,
        BASE_ETH_USDC,
        CONFIG,
        seed=1,
        progress=lambda done, total, **_: told.append((done, total)),
    )
    assert told[-1] == (8, 8)
    metrics = report.metrics
    assert metrics["n_decisions"] == 12
    assert metrics["trades_adapter"] == 12
    assert metrics["trades_hold"] == 0
    assert metrics["refused_adapter"] == metrics["unreadable_adapter"] == 0
    for name in ("return_teacher", "return_random", "max_drawdown_adapter", "p_hold", "p_random", "sharpe_hold"):
        assert name in metrics
    # The base says nothing that can be read, so it holds.
    assert metrics["unreadable_base"] == 12
    assert metrics["return_base"] == metrics["return_hold"]
    low, high = report.intervals["sharpe_adapter"]
    assert low < metrics["sharpe_adapter"] < high
    assert "not investment advice" in report.markdown
    assert set(report.figures) == {"equity.png", "trades.png"}
    again = backtest(market_rows(), None, None, BASE_ETH_USDC, CONFIG, seed=1)
    assert again == report


def scripted_student(base_says):
    """A student whose adapter always buys, and whose bare base says the texts of ``base_says``, one a decision."""

    class Scripted:
        off, asked = False, 0

        @classmethod
        def load(cls, base, adapter):
            return cls()

        def answers(self, prompts, *, max_new_tokens):
            said = base_says[self.asked] if self.off else "trend up\n####\nAPE IN 0.01 ETH"
            type(self).asked += self.off
            return [Answer(said, 20, "end_token")] * len(prompts)

        @contextmanager
        def adapter_off(self):
            self.off = True
            yield

    return Scripted


def test_a_base_that_says_no_action_is_asked_only_as_often_as_the_claim_needs(monkeypatch):
    monkeypatch.setattr(room, "Student", scripted_student(["I cannot say."] * 4))
    config = CONFIG.model_copy(update={"base_decisions": 1})
    report = backtest(market_rows(), None, None, BASE_ETH_USDC, config, seed=1)
    assert room.Student.asked == 1
    episodes = report.metrics["n_episodes"]
    assert report.metrics["n_decisions_base"] == report.metrics["unreadable_base"] == episodes
    assert report.metrics["return_base"] == report.metrics["return_hold"]
    assert f"was not asked for the other {report.metrics['n_decisions'] - episodes:.0f} decisions" in report.markdown


def test_a_base_that_acts_once_is_replayed_to_the_end(monkeypatch):
    """The control: skipping the base would change what is reported of it."""
    monkeypatch.setattr(room, "Student", scripted_student(["####\nAPE IN 0.02 ETH", "no", "no", "no"]))
    config = CONFIG.model_copy(update={"base_decisions": 1})
    report = backtest(market_rows(), None, None, BASE_ETH_USDC, config, seed=1)
    assert room.Student.asked == CONFIG.decisions
    assert report.metrics["n_decisions_base"] == report.metrics["n_decisions"]
    assert report.metrics["return_base"] != report.metrics["return_hold"]


def test_an_option_without_effect_is_no_part_of_the_configuration():
    assert "base_decisions" not in CONFIG.model_dump()
    assert CONFIG.model_copy(update={"base_decisions": 2}).model_dump()["base_decisions"] == 2


def test_too_few_swaps_or_missing_columns_are_an_error_with_the_numbers():
    with pytest.raises(BacktestError, match=r"15 held-out swaps.*needs 21"):
        make_market(market_rows(15), BASE_ETH_USDC, CONFIG)
    with pytest.raises(BacktestError, match="liquidity"):
        make_market(market_rows().drop("liquidity"), BASE_ETH_USDC, CONFIG)

"""What a run is expected to take, from what is remembered or from this machine's speed, and what is left of it."""

from pathlib import Path

import pytest

from apeagent_pipeline import device
from apeagent_pipeline.cli import time_left
from apeagent_pipeline.cli.time_left import TimeLeft, estimate, remember
from apeagent_pipeline.device import MeasuredFormat
from apeagent_pipeline.reporting.durations import about, in_words
from apeagent_pipeline.settings import Settings

ASSETS = ("trained_gan", "lora_adapter", "distillation_dataset")


def fast(monkeypatch: pytest.MonkeyPatch, float32: float, bfloat16: float) -> None:
    chosen = "bfloat16" if bfloat16 > float32 else "float32"
    monkeypatch.setattr(device, "number_format", lambda device: MeasuredFormat(chosen, "x", float32, bfloat16))


def test_an_asset_never_built_here_is_estimated_from_the_machines_speed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(home=tmp_path)
    fast(monkeypatch, 87, 50)
    slow = estimate(settings, ASSETS)
    fast(monkeypatch, 87, 174)
    quick = estimate(settings, ASSETS)
    assert slow is not None and quick is not None
    assert quick.seconds["lora_adapter"] == pytest.approx(slow.seconds["lora_adapter"] * 0.6)
    assert quick.seconds["trained_gan"] == slow.seconds["trained_gan"]  # computes in float32
    assert set(quick.seconds) == set(ASSETS)
    assert quick.total < slow.total


def test_what_was_built_here_is_remembered_for_its_profile_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch, 87, 50)
    demo, laptop = Settings(home=tmp_path), Settings(home=tmp_path, profile="laptop")
    remember(demo, {"trained_gan": 7.0, "lora_adapter": 9.0, "some_check": 1.0}, ASSETS)
    remember(demo, {"distillation_dataset": 0.5}, ASSETS)
    found = estimate(demo, ASSETS)
    assert found is not None
    assert (found.total, found.source) == (16.5, "as measured here before")
    other = estimate(laptop, ASSETS)
    assert other is not None
    assert other.total > 900


def test_nothing_is_promised_where_nothing_is_known(tmp_path: Path) -> None:
    assert estimate(Settings(home=tmp_path, profile="full"), ASSETS) is None
    assert estimate(Settings(home=tmp_path, student="some/model"), ASSETS) is None


@pytest.mark.parametrize("content", ["", "[]", '{"demo": 3}', "garbage"])
def test_a_broken_memory_is_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    fast(monkeypatch, 87, 50)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "durations.json").write_text(content)
    assert estimate(Settings(home=tmp_path), ASSETS) is not None
    remember(Settings(home=tmp_path), {"trained_gan": 7.0}, ASSETS)


def test_what_is_left_follows_the_speed_of_the_running_asset(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now)
    left = TimeLeft({"trained_gan": 60.0, "lora_adapter": 300.0})
    assert left.of_run(0, 0) == 360
    left.started("trained_gan")
    now = 110.0
    assert left.of_asset(0, 100) == 50  # too early to judge: what was expected
    assert left.of_asset(1, 100) == 50
    now = 120.0
    assert left.of_asset(51, 100) == pytest.approx(9.8)  # 50 steps in 10 s
    assert left.of_run(51, 100) == pytest.approx(309.8)
    now = 200.0
    assert left.of_asset(2, 100) == 0  # longer than expected, and never negative
    left.started("unforeseen")
    assert left.of_run(0, 1) == 300


@pytest.mark.parametrize(
    ("seconds", "words"), [(2, "a few seconds"), (44, "40 s"), (89, "90 s"), (280, "5 min"), (4800, "1 h 20 min")]
)
def test_durations_are_rounded_for_readers(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
    assert about(seconds) == (words if seconds == 2 else f"about {words}")


def test_a_run_that_goes_on_from_a_checkpoint_is_judged_by_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time_left.time, "monotonic", lambda: now)
    left = TimeLeft({"lora_adapter": 300.0})
    left.started("lora_adapter")
    now = 20.0
    assert left.of_asset(401, 850) == 280  # nothing known yet of its speed
    now = 220.0
    assert left.of_asset(501, 850) == 698  # 2 s a step, whatever was done before

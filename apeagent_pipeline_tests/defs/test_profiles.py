"""The table of profiles: every asset's options, and an error for a name that is not in it."""

from pathlib import Path

import pytest

from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.defs.profiles import FULL, LAPTOP, PROFILES, configured
from apeagent_pipeline.settings import Settings, SettingsError, load_settings
from apeagent_pipeline_tests.tiny_graph import TINY


def test_the_names_in_the_table_are_those_that_the_setting_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROFILES:
        monkeypatch.setenv("APEAGENT_PROFILE", name)
        assert load_settings().profile == name


def test_an_unknown_profile_is_an_error_and_not_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APEAGENT_PROFILE", "fast")
    with pytest.raises(SettingsError, match=r"APEAGENT_PROFILE='fast'.*'demo', 'laptop' or 'full'"):
        load_settings()
    monkeypatch.delenv("APEAGENT_PROFILE")
    unchecked = Settings(home=tmp_path).model_copy(update={"profile": "fast"})
    with pytest.raises(SettingsError, match="expected one of demo, laptop, full"):
        build_graph(unchecked)


def test_the_full_profile_trains_the_source_documents_sizes() -> None:
    assert (FULL.trained_gan.hidden, FULL.trained_gan.layers, FULL.trained_gan.heads) == (256, 4, 8)
    assert FULL.lora_adapter.last_blocks == 0  # all of them
    assert FULL.trained_gan != LAPTOP.trained_gan


def test_settings_about_single_options_reach_every_asset_that_they_concern(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, eval_prompts=50, teacher_max_requests=7)
    profile = configured(settings, TINY)
    assert (profile.canary_eval.n_trading, profile.canary_eval.n_controls) == (50, 50)
    assert profile.distillation_dataset.n_test_trading == 50
    assert profile.teacher_traces.test_prompts == 65  # a reserve, since some answers are refused
    assert profile.teacher_traces.max_requests == 7
    assert profile.trained_gan is TINY.trained_gan

"""Which adapter is in service: only one that proved itself, and the one before can come back."""

import json
from pathlib import Path

import pytest

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.student.promotion import (
    KEPT,
    PROMOTED,
    PromotionError,
    history,
    history_page,
    history_table,
    in_service,
    promote,
    reasons_against,
    roll_back,
)


def report(agreement: float, spread: float = 0.05, leak: float = 0.0) -> dict[str, dict[str, object]]:
    return {
        "metrics": {"agreement": agreement, "control_leak_rate": leak},
        "intervals": {
            "agreement": [agreement - spread, agreement + spread],
            "control_leak_rate": [max(0.0, leak - spread), leak + spread],
        },
    }


class Candidates:
    """Trains adapters, as far as promotion is concerned."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = ArtifactStore(str(tmp_path / "storage"), tmp_path / "cache")
        self.folder = tmp_path

    def apply(self, name: str, told: dict[str, dict[str, object]], failures: tuple[str, ...] = ()) -> list[str]:
        """Ask for promotion as the asset does."""
        told = {"provenance": {"inputs": {"lora_adapter": name}}, **told}
        adapter = self.folder / "adapter"
        adapter.mkdir(exist_ok=True)
        (adapter / "adapter_model.safetensors").write_bytes(name.encode())
        out = self.folder / "out"
        wrong = promote(self.store, adapter, name, told, failures=failures, origins=[], out=out)
        self.store.publish_folder(out, asset=PROMOTED, code_version="1", inputs={"lora_adapter": name})
        return wrong

    @property
    def serving(self) -> str:
        return (in_service(self.store) / "adapter_model.safetensors").read_text()


@pytest.fixture
def candidates(tmp_path: Path) -> Candidates:
    return Candidates(tmp_path)


def test_a_better_adapter_goes_into_service_and_a_worse_one_does_not(candidates: Candidates) -> None:
    assert candidates.apply("first", report(0.7)) == []
    assert candidates.apply("better", report(0.9)) == []
    assert candidates.serving == "better"
    (why,) = candidates.apply("worse", report(0.6))
    assert "agreement is 0.6 (0.55 to 0.65), in service 0.9" in why
    assert candidates.serving == "better"
    (why,) = candidates.apply("leaking", report(0.9, leak=0.3))
    assert "control_leak_rate" in why
    assert [each.adapter for each in history(candidates.store)] == ["first", "better"]


def test_an_adapter_beyond_the_limits_of_its_check_never_goes_into_service(candidates: Candidates) -> None:
    with pytest.raises(PromotionError, match="bad does not go into service: canary_rate_adapter is"):
        candidates.apply("bad", report(0.9), failures=("canary_rate_adapter is 0.100; expected at least 0.9",))
    assert history(candidates.store) == []
    assert candidates.apply("good", report(0.9)) == []
    assert candidates.apply("bad", report(0.95), failures=("too bad",)) == ["too bad"]
    assert candidates.serving == "good"


def test_the_report_of_another_adapter_promotes_nobody(candidates: Candidates) -> None:
    other = {**report(0.9), "provenance": {"inputs": {"lora_adapter": "other"}}}
    with pytest.raises(PromotionError, match="its canary report is of adapter other: evaluate new first"):
        candidates.apply("new", other)


def test_what_may_be_chance_keeps_nobody_out() -> None:
    assert reasons_against(report(0.86), {"agreement": 0.9}) == []
    assert reasons_against(report(0.84), {"agreement": 0.9}) != []


def test_the_same_adapter_again_changes_nothing(candidates: Candidates) -> None:
    candidates.apply("first", report(0.7))
    before = candidates.store.manifest(PROMOTED)
    candidates.apply("first", report(0.5))
    after = candidates.store.manifest(PROMOTED)
    assert before and after and before.data_version == after.data_version
    assert len(history(candidates.store)) == 1


def test_a_rollback_brings_the_one_before_back_and_keeps_the_other_out(candidates: Candidates) -> None:
    candidates.apply("first", report(0.7))
    candidates.apply("second", report(0.9))
    assert roll_back(candidates.store).adapter == "first"
    assert candidates.serving == "first"
    manifest = candidates.store.manifest(PROMOTED)
    assert manifest and manifest.inputs == {"lora_adapter": "second"}  # nothing that was read has changed
    assert candidates.apply("second", report(0.9)) == ["it was withdrawn by a rollback"]
    assert candidates.serving == "first"
    assert candidates.apply("third", report(0.9)) == []
    assert candidates.serving == "third"
    assert roll_back(candidates.store).adapter == "first"
    assert [each.why for each in history(candidates.store)] == [
        "promoted",
        "promoted",
        "rollback",
        "promoted",
        "rollback",
    ]
    table = history_table(candidates.store)
    assert table.count("rollback") == 2
    assert max(map(len, table.splitlines())) <= 110, "it fits a page of 1,280 pixels"


def test_every_change_of_the_adapter_in_service_is_kept_with_its_reason(candidates: Candidates) -> None:
    candidates.apply("first", report(0.7))
    candidates.apply("second", report(0.9))
    roll_back(candidates.store)
    assert [each.reason for each in history(candidates.store)] == [
        "within the limits of its check, and the first adapter",
        "within the limits of its check and not shown worse than first: agreement 0.900 after 0.700, "
        "control leak rate 0.000 after 0.000",
        "a rollback from second, which was withdrawn",
    ]
    page = history_page(candidates.store)
    assert page.startswith(history_table(candidates.store))
    assert (
        page.index("a rollback from second")
        < page.index("not shown worse than first")
        < page.index("the first adapter")
    )


def test_a_rollback_goes_to_any_kept_adapter_and_can_be_undone(candidates: Candidates) -> None:
    for name in ("first", "second", "third"):
        assert candidates.apply(name, report(0.9)) == []
    assert roll_back(candidates.store, "fi").adapter == "first"
    assert candidates.serving == "first"
    assert history(candidates.store)[-1].withdrawn == ["third"]
    assert candidates.apply("third", report(0.9)) == ["it was withdrawn by a rollback"]
    assert roll_back(candidates.store, "third").withdrawn == []
    assert candidates.serving == "third"
    assert roll_back(candidates.store).adapter == "first", "the one before it was not withdrawn"
    with pytest.raises(PromotionError, match="first is in service already"):
        roll_back(candidates.store, "first")
    with pytest.raises(PromotionError, match="no adapter of the history has the version 'zz'"):
        roll_back(candidates.store, "zz")


def test_there_is_nothing_to_go_back_to_before_a_second_promotion(candidates: Candidates) -> None:
    with pytest.raises(PromotionError, match="No adapter is in service: none was trained"):
        in_service(candidates.store)
    with pytest.raises(PromotionError, match="no adapter is in service yet"):
        roll_back(candidates.store)
    candidates.apply("first", report(0.7))
    with pytest.raises(PromotionError, match="first is the first adapter in service"):
        roll_back(candidates.store)


def test_the_archive_does_not_grow_without_bound(candidates: Candidates) -> None:
    for number in range(KEPT + 3):
        candidates.apply(f"adapter{number}", report(0.7))
    archive = candidates.store.local_folder("promotions")
    kept = {folder.name for folder in archive.iterdir() if folder.is_dir() and any(folder.iterdir())}
    assert kept == {f"adapter{number}" for number in range(3, KEPT + 3)}
    assert len(json.loads((archive / "history.json").read_text())) == KEPT + 3

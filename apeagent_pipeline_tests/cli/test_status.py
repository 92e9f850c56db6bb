"""``apeagent status`` as a user asks it: what is out of date, why, and what it would take."""

import re
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner, Result

from apeagent_pipeline import cli
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.day_records import notes_of
from apeagent_pipeline.chain.market_simulation import SIMULATION_VERSION
from apeagent_pipeline.chain.proof import DayProof
from apeagent_pipeline.chain.source import EmbeddedSource
from apeagent_pipeline.cli.time_left import Estimate
from apeagent_pipeline.defs import profiles
from apeagent_pipeline.defs.checks import judges
from apeagent_pipeline.defs.gates import VERDICT, WHOLE_ARTIFACT, Verdicts
from apeagent_pipeline.defs.instance import open_instance
from apeagent_pipeline.defs.update import update
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.tiny_graph import TINY, tiny_graph

DAYS = ["2025-01-22", "2025-01-23"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two days of swaps, features and training windows."""
    settings = Settings(home=tmp_path_factory.mktemp("home"))
    graph = tiny_graph(settings)
    with open_instance(settings) as instance:
        rounds = update(graph, instance, DAYS, only={"raw_swaps", "swap_features", "training_windows"})
    assert rounds[-1].success
    return settings.home


@pytest.fixture(autouse=True)
def tiny_profile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(profiles, "PROFILES", {"demo": TINY})
    yield


def status(home: Path, *arguments: str, **settings: str) -> Result:
    return CliRunner().invoke(
        cli.app, ["status", *arguments], env={"APEAGENT_HOME": str(home), "COLUMNS": "200", **settings}
    )


def test_what_is_up_to_date_is_said_and_exits_0(home: Path) -> None:
    for artifact in ("raw_swaps", f"swap_features/{DAYS[0]}", "training_windows"):
        done = status(home, artifact)
        assert done.exit_code == 0, done.output
        assert f"{artifact} is up to date" in done.output


def test_everything_missing_is_listed_with_what_it_waits_for(home: Path) -> None:
    done = status(home)
    assert done.exit_code == 1
    row = next(line for line in done.output.splitlines() if line.startswith("│ synthetic_windows "))
    assert "missing" in row
    assert "trained_gan" in row
    assert "raw_swaps" not in done.output
    assert f"`apeagent demo --from {DAYS[0]} --to {DAYS[-1]}` brings everything up to date" in done.output


def test_a_day_outside_the_demo_is_answered_with_the_command_that_builds_it(home: Path) -> None:
    done = status(home, "swap_features/2025-02-09")
    assert "`apeagent sync --from 2025-02-09 --to 2025-02-09` brings swaps and features of this day" in done.output
    assert f"`apeagent demo --from {DAYS[0]} --to 2025-02-09` brings everything up to date" in done.output


def test_corrected_decimals_make_the_features_stale(home: Path) -> None:
    features = f"swap_features/{DAYS[0]}"
    assert status(home, features, APEAGENT_POOL_TOKENS="ETH:18,USDC:6").exit_code == 0  # what they were built with
    corrected = status(home, features, APEAGENT_POOL_TOKENS="ETH:18,USDC:8")
    assert "code or settings changed" in corrected.output
    assert "now 1-decimals-18-8." in corrected.output


def test_a_changed_seed_is_named_with_both_values(home: Path) -> None:
    done = status(home, "training_windows", APEAGENT_SEED="7")
    assert done.exit_code == 1
    assert "code or settings changed" in done.output
    assert "option seed: built with 42, now 7" in done.output
    built, now = re.findall(r"code version: built with (\S+), now (\S+)", done.output)[0]
    assert built != now
    assert built.split(".")[0] == now.split(".")[0]  # the code is the same; the options are not


def test_a_changed_day_is_named_with_both_versions_and_what_is_downstream(home: Path, tmp_path: Path) -> None:
    store = tiny_graph(Settings(home=home)).runtime.store
    manifest = store.whole("raw_swaps", DAYS[0])
    table = store.table(manifest).collect()
    made_from = manifest.model_dump(include={"asset", "partition", "config", "code_version", "inputs"})
    changed = store.publish_table(table.head(table.height - 1), **made_from)
    try:
        done = status(home, f"swap_features/{DAYS[0]}")
        assert done.exit_code == 1
        assert f"raw_swaps/{DAYS[0]}: built from {manifest.data_version}, now {changed.data_version}" in done.output
        # The day after sees the last rows of the changed day.
        narrow = status(home, f"swap_features/{DAYS[1]}", COLUMNS="80")
        assert narrow.exit_code == 1
        assert "…" not in narrow.output, "a narrow terminal cuts no reason off"
        assert status(home, f"raw_swaps/{DAYS[0]}").exit_code == 0
    finally:
        store.publish_table(table, **made_from)
    assert status(home, f"swap_features/{DAYS[0]}").exit_code == 0


def test_a_day_waits_for_the_day_before_that_it_reads(home: Path) -> None:
    store = tiny_graph(Settings(home=home)).runtime.store
    manifest = store.whole("raw_swaps", DAYS[0])
    table = store.table(manifest).collect()
    made_from = manifest.model_dump(include={"asset", "partition", "config", "code_version", "inputs"})
    store.publish_table(table.head(table.height - 1), **{**made_from, "code_version": "0"})
    try:
        for artifact in (f"swap_features/{DAYS[1]}", "swap_features"):
            done = status(home, artifact)
            row = next(line for line in done.output.splitlines() if line.startswith("│ swap_features "))
            assert f"raw_swaps ({DAYS[0]})" in row, done.output
    finally:
        store.publish_table(table, **made_from)


def test_unconfirmed_days_are_listed_with_their_doubt(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "Unconfirmed" not in status(home, "raw_swaps").output
    doubtful = notes_of(DayProof(by=(), doubts=("only one endpoint was asked",)))
    monkeypatch.setattr(
        EmbeddedSource,
        "day_notes",
        lambda self, day: doubtful if str(day) == DAYS[1] else notes_of(DayProof(("chain",))),
    )
    for artifact in ([], ["raw_swaps"], [f"raw_swaps/{DAYS[1]}"]):
        told = status(home, *artifact).output
        assert "Unconfirmed days of raw_swaps: 1" in told
        assert f"{DAYS[1]}: only one endpoint was asked" in told
    for artifact in (["training_windows"], [f"raw_swaps/{DAYS[0]}"]):
        assert "Unconfirmed" not in status(home, *artifact).output


def test_the_time_is_the_measured_one_or_the_estimate_of_demo(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "apeagent_pipeline.cli.status.estimate", lambda _, names: Estimate(dict.fromkeys(names, 600.0), "a guess")
    )
    done = status(home, "trained_gan")
    assert "10 min" in next(line for line in done.output.splitlines() if line.startswith("│ trained_gan "))
    assert "(a guess)" in done.output


def test_a_failed_blocking_check_is_named_for_what_it_holds_back(home: Path) -> None:
    why = "a window lies in two splits"

    def judge(passed: bool) -> None:
        version = ArtifactStore(Settings(home=home).storage_url, home / "cache").whole("training_windows").data_version
        found = ({WHOLE_ARTIFACT: version}, {}) if passed else ({}, {WHOLE_ARTIFACT: (version, why)})
        with open_instance(Settings(home=home)) as instance:
            instance.report_runless_asset_event(
                dg.AssetCheckEvaluation(
                    asset_key=dg.AssetKey("training_windows"),
                    check_name="splits_do_not_leak",
                    passed=passed,
                    description=why,
                    severity=dg.AssetCheckSeverity.ERROR,
                    metadata={VERDICT: Verdicts(*found).metadata(judges())},
                )
            )

    judge(passed=False)
    assert why in " ".join(status(home, "trained_gan").output.split())
    judge(passed=True)
    assert why not in " ".join(status(home, "trained_gan").output.split())


def test_days_of_another_market_are_named_with_their_market(home: Path) -> None:
    assert "other markets" not in status(home, "raw_swaps").output
    for settings in ({"APEAGENT_RPC_URLS": "http://127.0.0.1:9"}, {"APEAGENT_SEED": "7"}):
        told = " ".join(status(home, "raw_swaps", **settings).output.split())
        market = f"pool 0x96d4b53a of chain 8453, simulated (v{SIMULATION_VERSION}-seed42) ({', '.join(DAYS)})"
        assert f"Stored days of other markets than the settings name: {market}" in told
        assert "storage/liquidity_changes" in told  # its manifests name no market, so only its files can be deleted


def test_nothing_stored_is_no_error(tmp_path: Path) -> None:
    done = status(tmp_path)
    assert done.exit_code == 1
    assert "no day is stored" in done.output


@pytest.mark.parametrize(
    ("artifact", "told"),
    [
        ("swaps", "'swaps' is not an asset of the graph: expected one of raw_swaps"),
        ("trained_gan/2025-01-22", "trained_gan has no days"),
        ("raw_swaps/2025-02-30", "expected a day such as"),
    ],
)
def test_a_name_that_means_nothing_is_an_error_that_says_what_is_allowed(home: Path, artifact: str, told: str) -> None:
    done = status(home, artifact)
    assert done.exit_code != 0
    assert told in str(done.exception)


def test_an_upgrade_is_told_with_what_may_follow_and_what_the_teacher_costs(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current = status(home, "training_windows", APEAGENT_SEED="7").output
    assert "If their content changes" not in current, "everything downstream is missing anyway"
    assert "This includes the teacher's answers: the teacher costs nothing." in current
    assert "this is" not in current
    monkeypatch.setattr("importlib.metadata.version", lambda name: "9.9.9")
    told = status(home, "training_windows", APEAGENT_SEED="7").output
    assert re.search(r"\d+ of them were built by apeagent_pipeline", told)
    assert "this is 9.9.9" in told
    assert "the daemon does not act on an upgrade" in told


def test_what_lies_below_is_named_in_the_order_of_the_graph(home: Path) -> None:
    graph = tiny_graph(Settings(home=home))
    below = graph.downstream_of({"canary_eval"})
    assert set(below) == {"promoted_adapter", "fused_model", "ollama_model", "service_report"}
    assert below.index("promoted_adapter") < below.index("fused_model") < below.index("ollama_model")
    assert graph.downstream_of({"backtest"}) == []

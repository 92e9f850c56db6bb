"""When a change of an input is handled: with tiny assets, for every order of changes and runs that counts."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from apeagent_pipeline.defs.conditions import HOST_TAG, on_change


class Chain:
    """``gan``, ``windows`` made from it, ``report`` made from both, and ``prompts``, which also need ``answers``."""

    def __init__(self, instance: dg.DagsterInstance) -> None:
        self.instance, self.cursor = instance, None
        self.now = datetime(2026, 1, 5, 12, tzinfo=UTC)
        self.version = 0
        self.broken: set[str] = set()

        @dg.asset
        def gan() -> dg.MaterializeResult:
            return dg.MaterializeResult(data_version=dg.DataVersion(f"{self.version}"))

        @dg.asset(deps=[gan], automation_condition=on_change())
        def windows() -> dg.MaterializeResult:
            assert "windows" not in self.broken
            return dg.MaterializeResult(data_version=dg.DataVersion(f"windows of {self.version}"))

        @dg.asset(deps=[gan, windows], automation_condition=on_change())
        def report() -> dg.MaterializeResult:
            assert "report" not in self.broken
            return dg.MaterializeResult(data_version=dg.DataVersion(f"report on {self.version}"))

        @dg.asset
        def answers() -> None: ...

        @dg.asset(deps=[gan, answers], automation_condition=on_change())
        def prompts() -> None: ...

        self.definitions = dg.Definitions([gan, windows, report, answers, prompts])

    def due(self) -> set[str]:
        """What a look of the daemon asks for."""
        self.now += timedelta(minutes=1)
        followed = ("windows", "report", "prompts")
        looked = dg.evaluate_automation_conditions(
            self.definitions,
            self.instance,
            dg.AssetSelection.assets(*followed),
            evaluation_time=self.now,
            cursor=self.cursor,
        )
        self.cursor = looked.cursor
        return {name for name in followed if looked.get_num_requested(dg.AssetKey(name))}

    def run(self, assets: str) -> bool:
        """Build some assets in one run."""
        return (
            self.definitions.resolve_implicit_global_asset_job_def()
            .execute_in_process(
                instance=self.instance,
                asset_selection=[dg.AssetKey(name) for name in assets.split()],
                tags={HOST_TAG: "here"},  # as `defs.build` tags each run
                raise_on_error=False,
            )
            .success
        )

    def retrain(self, assets: str) -> bool:
        """The same with a GAN that has changed."""
        self.version += 1
        return self.run(assets)


@pytest.fixture
def chain() -> Iterator[Chain]:
    with dg.DagsterInstance.ephemeral() as instance:
        chain = Chain(instance)
        assert chain.run("gan windows report")
        assert chain.due() == set(), "the first look only remembers"
        yield chain


def test_what_one_run_has_built_with_its_inputs_is_not_built_once_more(chain: Chain) -> None:
    assert chain.retrain("gan windows report")
    assert [chain.due() for _ in range(2)] == [set(), set()]


def test_what_a_run_did_not_build_is_built_once(chain: Chain) -> None:
    assert chain.retrain("gan")
    assert chain.due() == {"windows", "report"}
    assert chain.run("windows report")
    assert [chain.due() for _ in range(2)] == [set(), set()]


def test_what_a_run_was_to_build_and_did_not_reach_is_built(chain: Chain) -> None:
    chain.broken.add("windows")
    assert not chain.retrain("gan windows report")
    chain.broken.clear()
    assert chain.due() == {"windows", "report"}


def test_what_a_requested_run_did_not_reach_is_requested_again(chain: Chain) -> None:
    assert chain.retrain("gan")
    assert chain.due() == {"windows", "report"}
    chain.broken.add("report")
    assert not chain.run("windows report")
    chain.broken.clear()
    assert chain.due() == {"report"}
    assert chain.run("report")
    assert [chain.due() for _ in range(2)] == [set(), set()]


def test_a_change_by_another_run_afterwards_is_not_lost(chain: Chain) -> None:
    assert chain.retrain("gan windows report")
    assert chain.retrain("gan")
    assert chain.due() == {"windows", "report"}


def test_a_change_is_remembered_until_the_other_input_is_there(chain: Chain) -> None:
    assert chain.retrain("gan windows report")
    assert [chain.due() for _ in range(3)] == [set()] * 3
    chain.instance.report_runless_asset_event(dg.AssetMaterialization("answers"))
    assert chain.due() == {"prompts"}

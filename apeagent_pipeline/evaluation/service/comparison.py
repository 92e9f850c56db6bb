"""Two adapters on the same moments of the same days, paired.

Rates are compared by the moments at which exactly one of the two was right: the interval of their difference is the
exact one of a sign test (McNemar), given how many such moments there are. Worth is compared by the mean difference of a
moment, with a bootstrap interval. A difference whose interval holds 0 is not distinguishable.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import polars as pl

from apeagent_pipeline.evaluation.service.config import ServiceReportConfig
from apeagent_pipeline.evaluation.statistics import clopper_pearson, mean_interval
from apeagent_pipeline.reporting.report import Report, markdown_table

_KEY = ("form", "moment")
_RATES = {
    "canary_rate": pl.col("is_canary"),
    "feasible_rate": pl.col("is_feasible"),
    "agreement": pl.col("decision") == pl.col("rules_decision"),
}


class Difference(NamedTuple):
    """One measure of two adapters.

    Attributes:
        first: Value of the first.
        second: Value of the second.
        interval: 95 % interval of ``second - first``.
        unit: ``%`` or ``bps``.
    """

    first: float
    second: float
    interval: tuple[float, float]
    unit: str

    @property
    def is_distinguishable(self) -> bool:
        """Whether the interval does not hold 0."""
        low, high = self.interval
        return not low <= 0 <= high

    def row(self, name: str) -> list[str]:
        """Cells of a table."""
        write = "{:.1%}".format if self.unit == "%" else "{:+.1f} bps".format
        low, high = map(write, self.interval)
        verdict = "not distinguishable" if not self.is_distinguishable else f"{self._better} is higher"
        return [name.replace("_", " "), write(self.first), write(self.second), f"{low} to {high}", verdict]

    @property
    def _better(self) -> str:
        return "the second" if self.interval[0] > 0 else "the first"


def paired(first: pl.DataFrame, second: pl.DataFrame) -> pl.DataFrame:
    """The answers of two adapters to the same questions, those of the second with the suffix ``_second``."""
    return first.join(second, on=_KEY, suffix="_second", how="inner").filter(
        pl.col("prompt") == pl.col("prompt_second")
    )


def differences(both: pl.DataFrame, seed: int) -> dict[str, Difference]:
    """Every measure of two adapters: of all forms together and ``NAME_FORM`` of each.

    Args:
        both: Rows of `paired`, at least one.
        seed: Of the bootstrap.
    """
    groups = {"": both, **{f"_{form}": each for (form,), each in both.group_by("form", maintain_order=True)}}
    found = dict(_of_rates(groups))
    for end, group in groups.items():
        worth = group.group_by("moment", maintain_order=True).agg(pl.col("worth_bps", "worth_bps_second").mean())
        gained = (worth["worth_bps_second"] - worth["worth_bps"]).to_numpy()
        means = [float(worth[name].to_numpy().mean()) for name in ("worth_bps", "worth_bps_second")]
        found[f"worth_bps{end}"] = Difference(means[0], means[1], mean_interval(gained, seed), "bps")
    return found


def _of_rates(groups: Mapping[str, pl.DataFrame]) -> Iterator[tuple[str, Difference]]:
    for name, right in _RATES.items():
        second = right.meta.root_names()
        of_second = pl.struct(pl.col(f"{column}_second").alias(column) for column in second)
        for end, group in groups.items():
            a = group.select(right.alias("right"))["right"]
            b = group.select(of_second.alias("second")).unnest("second").select(right.alias("right"))["right"]
            yield f"{name}{end}", _of_pairs(a, b)


def _of_pairs(first: pl.Series, second: pl.Series) -> Difference:
    only_second, only_first, n = int((second & ~first).sum()), int((first & ~second).sum()), len(first)
    apart = only_first + only_second
    low, high = (0.0, 0.0) if apart == 0 else (
        (2 * bound - 1) * apart / n for bound in clopper_pearson(only_second, apart)
    )  # fmt: skip
    return Difference(int(first.sum()) / n, int(second.sum()) / n, (low, high), "%")


def comparison_report(
    names: tuple[str, str], both: pl.DataFrame, config: ServiceReportConfig, seed: int, trained_on: Mapping[str, int]
) -> Report:
    """The page of a comparison.

    Args:
        names: Data versions of the first and the second adapter.
        both: Rows of `paired`, at least one.
        config: Moments and wordings.
        seed: Of the bootstrap.
        trained_on: Adapter -> how many of the compared days it was trained on.
    """
    found = differences(both, seed)
    days = both["moment"].dt.date().unique().sort()
    seen = "; ".join(f"{name} was trained on {count} of them" for name, count in trained_on.items() if count)
    apart = [name for name, each in found.items() if each.is_distinguishable]
    return Report(
        title=f"Adapters {names[0]} and {names[1]}",
        metrics={
            **{f"{name}_first": each.first for name, each in found.items()},
            **{f"{name}_second": each.second for name, each in found.items()},
            **{f"{name}_difference": each.second - each.first for name, each in found.items()},
            "n_pairs": float(both.height),
        },
        intervals={f"{name}_difference": each.interval for name, each in found.items()},
        config=config.model_dump(),
        markdown="\n\n".join(
            [
                f"The first is `{names[0]}`, the second `{names[1]}`. Both answered the same {both.height} questions "
                f"about {len(days)} days, {days[0]} to {days[-1]}; {seen or 'neither was trained on them'}.",
                f"They differ in {', '.join(apart)}." if apart else "**They are not distinguishable** in any measure.",
                markdown_table(
                    ["measure", "first", "second", "95 % interval of the difference", ""],
                    [each.row(name) for name, each in found.items()],
                ),
            ]
        ),
    )

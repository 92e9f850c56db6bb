"""Scenarios: synthetic windows of a market that is asked for, such as a wild one or one of buyers.

What counts as wild is read off the real windows of the same days: their most volatile quarter. Windows are drawn as
always, and those that do not show the scenario are left out (rejection sampling). What remains follows the generator's
own distribution given the scenario: nothing in a window is scaled or shifted.
"""

from typing import Literal, NamedTuple, Self

import numpy as np
import polars as pl

from apeagent_pipeline.market.windows import TrainingWindows

Scenario = Literal["any", "calm", "wild", "buying", "selling"]
"""``any``: as the generator draws; else a quarter of the market by volatility or by flow."""

_QUARTER = 0.25

_MEASURES: dict[str, tuple[str, float]] = {
    "calm": ("volatility", -1.0),
    "wild": ("volatility", 1.0),
    "buying": ("flow", 1.0),
    "selling": ("flow", -1.0),
}
"""Scenario -> the measure of a window, and 1 for its upper quarter, -1 for its lower one."""

_COLUMNS = ["price", "volume_usdc", "side"]


class ScenarioLimit(NamedTuple):
    """The quarter of the windows that shows a scenario.

    Attributes:
        measure: "volatility", root mean square of the log returns inside a window; or "flow", bought less sold USDC
            divided by both together, from -1 to 1.
        sign: 1: windows at or above the limit show the scenario; -1: at or below.
        limit: The real windows' upper or lower quartile of the measure.
    """

    measure: str
    sign: float
    limit: float

    @classmethod
    def of(cls, scenario: Scenario, windows: TrainingWindows, starts: np.ndarray) -> Self:
        """The limit of a scenario other than ``any``, read off the real windows at ``starts`` [n]."""
        measure, sign = _MEASURES[scenario]
        index = (starts + windows.context)[:, None] + np.arange(windows.length)
        columns = (windows.table[name].to_numpy()[index] for name in _COLUMNS)
        values = _measures(*columns)[measure]
        return cls(measure, sign, float(np.quantile(values, 1 - _QUARTER if sign > 0 else _QUARTER)))

    def shown_by(self, table: pl.DataFrame, length: int) -> np.ndarray:
        """Which windows of a table of whole windows of ``length`` rows show the scenario, [windows]."""
        columns = (table[name].to_numpy().reshape(-1, length) for name in _COLUMNS)
        return self.sign * _measures(*columns)[self.measure] >= self.sign * self.limit


def _measures(price: np.ndarray, volume: np.ndarray, side: np.ndarray) -> dict[str, np.ndarray]:
    """Measure -> its value in every window [n], from the columns of the windows [n, T]."""
    bought = np.where(side == "BUY", volume, -volume)
    return {
        "volatility": np.sqrt(np.square(np.diff(np.log(price), axis=1)).mean(axis=1)),
        "flow": bought.sum(axis=1) / volume.sum(axis=1),
    }

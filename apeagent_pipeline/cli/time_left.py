"""How long the assets of a run take on this machine, and how much of that is left while it works.

The seconds that an asset took when it was last built with this profile are remembered below ``APEAGENT_HOME``. An asset
that was never built here is estimated from a reference machine: a fixed share of its seconds there stays, the rest
follows the ratio of the two machines' speeds at matrix products, those of ``device.number_format``.
"""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.settings import SMOLLM2, Settings

_REFERENCE_GFLOPS = 87.0
"""float32 speed of the reference: two cores of an AMD EPYC without AMX, which computed in float32. The seconds are
worked back from a machine with AMX, because the present recipes were measured there alone."""
_REFERENCE_SECONDS = {
    "laptop": {
        "raw_swaps": 4, "trained_gan": 240, "synthetic_windows": 6, "synthetic_quality": 70, "lora_adapter": 3_800,
        "canary_eval": 1_000, "backtest": 400, "fused_model": 13, "ollama_model": 40,
    },
    "demo": {
        "raw_swaps": 4, "trained_gan": 80, "synthetic_windows": 7, "synthetic_quality": 38, "lora_adapter": 1_010,
        "canary_eval": 380, "backtest": 115, "fused_model": 6, "ollama_model": 26,
    },
}  # fmt: skip
_IN_STUDENTS_FORMAT = {"lora_adapter", "canary_eval", "backtest"}
"""Assets whose time is that of the student, in the number format that was chosen for it; the others use float32."""
_FIXED_SHARE = 0.2
"""Of the reference's seconds what faster products leave as it is: memory traffic, imports, Python."""
_SMALL_ASSET = 1.0
_KNOWN_FROM = 0.05
"""Share of an asset's steps after which its own speed is a better guide than the estimate."""


@dataclass(frozen=True)
class Estimate:
    """Expected seconds of each asset, and where they come from.

    Attributes:
        seconds: Asset -> seconds.
        source: In words, for the user.
    """

    seconds: Mapping[str, float]
    source: str

    @property
    def total(self) -> float:
        """Seconds of all assets together."""
        return sum(self.seconds.values())


def estimate(settings: Settings, assets: Collection[str]) -> Estimate | None:
    """What building assets will take on this machine; None where nothing is known about the profile or the student.

    Args:
        settings: Profile, student and home.
        assets: Names of the assets to build.
    """
    known = {name: took for name, took in _remembered(settings).items() if name in assets}
    if len(known) == len(assets):
        return Estimate(known, "as measured here before")
    reference = _REFERENCE_SECONDS.get(settings.profile)
    if reference is None or settings.student != SMOLLM2 or settings.teacher != "rules":
        return None
    from apeagent_pipeline.device import chosen_device, number_format

    measured = number_format(chosen_device())
    float32 = measured.float32 or _REFERENCE_GFLOPS
    speeds = {"float32": float32, "bfloat16": measured.bfloat16 or _REFERENCE_GFLOPS}
    seconds = {}
    for name in assets:
        speed = speeds[measured.chosen] if name in _IN_STUDENTS_FORMAT else float32
        seconds[name] = reference.get(name, _SMALL_ASSET) * (
            _FIXED_SHARE + (1 - _FIXED_SHARE) * _REFERENCE_GFLOPS / speed
        )
    return Estimate({**seconds, **known}, "estimated from the speed of this machine's matrix products")


def remember(settings: Settings, seconds: Mapping[str, float], assets: Collection[str]) -> None:
    """Keep the seconds that assets took, for the estimates of later runs with the same profile."""
    took = {name: round(value, 1) for name, value in seconds.items() if name in assets}
    path = _file(settings)
    content = {**_read(path), _key(settings): {**_remembered(settings), **took}}
    write_atomically(path, json.dumps(content, indent=2, sort_keys=True) + "\n")


class TimeLeft:
    """How many seconds a run still needs, corrected by how fast its assets really are."""

    def __init__(self, expected: Mapping[str, float]) -> None:
        """A run that has not begun.

        Args:
            expected: Asset -> seconds, of every asset that will be built.
        """
        self._waiting = dict(expected)
        self._current, self._begun = 0.0, time.monotonic()
        self._first: tuple[int, float] | None = None

    def started(self, asset: str) -> None:
        """An asset begins; the one before it has ended."""
        self._current, self._begun = self._waiting.pop(asset, 0.0), time.monotonic()
        self._first = None

    def of_asset(self, done: int, total: int) -> float:
        """Seconds that the current asset still needs, after ``done`` of ``total`` steps.

        Its speed is that since the first step it told of: a run that goes on from a checkpoint did not do the steps
        before.
        """
        now = time.monotonic()
        if done and self._first is None:
            self._first = (done, now)
        if self._first and (steps := done - self._first[0]) >= _KNOWN_FROM * total > 0:
            return (now - self._first[1]) * (total - done) / steps
        return max(self._current - (now - self._begun), 0.0)

    def of_run(self, done: int, total: int) -> float:
        """Seconds that the current asset and all later ones still need."""
        return self.of_asset(done, total) + sum(self._waiting.values())


def _key(settings: Settings) -> str:
    return f"{settings.profile}, {settings.student}, {settings.teacher}"


def _file(settings: Settings) -> Path:
    return settings.home.absolute() / "cache" / "durations.json"


def _remembered(settings: Settings) -> dict[str, float]:
    found = _read(_file(settings)).get(_key(settings), {})
    return {name: took for name, took in found.items() if isinstance(took, int | float)}


def _read(path: Path) -> dict[str, dict[str, float]]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    whole = isinstance(found, dict) and all(isinstance(each, dict) for each in found.values())
    return found if whole else {}

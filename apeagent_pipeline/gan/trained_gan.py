"""The trained GAN: what ``trained_gan`` stores, and a `WindowGenerator`."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.checkpoint import on_cpu
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.critic import Critic
from apeagent_pipeline.gan.generator import Generator
from apeagent_pipeline.gan.sampling import SamplingError
from apeagent_pipeline.gan.swap_execution import Origins
from apeagent_pipeline.gan.training_rows import RealRows
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress

_CONTROL_FILE = "control.safetensors"

History = dict[str, dict[str, list[float]]]


class TrainingError(ApeagentError, RuntimeError):
    """Training cannot start, has diverged or has left no GAN; the message names the cause and the remedy."""


@dataclass
class TrainedGan:
    """A generator with averaged weights, its critic, the bins of its rows, and its training history.

    Attributes:
        history: Stage -> name -> values, ``step`` among the names. The stages are "likelihood", "adversarial" and
            "control"; "held_out" and "control_held_out" hold the held-out scores of the candidates for the kept
            weights, and of the control at its end.
        control: A generator trained from the same warm start by likelihood alone; None if it was not trained.
    """

    config: GanConfig
    seed: int
    bins: RowBins
    generator: Generator
    critic: Critic
    history: History = field(default_factory=dict)
    control: Generator | None = None

    def sample(
        self, windows: TrainingWindows, starts: np.ndarray, seed: int, *, batch: int, progress: Progress
    ) -> tuple[np.ndarray, Origins]:
        """Continue real histories; see `sampling.WindowGenerator`.

        Raises:
            SamplingError: if the windows have another shape than those of the training.
        """
        expected = self.generator.context, self.generator.length
        if (windows.context, windows.length) != expected:
            raise SamplingError(
                f"the windows are {windows.context} + {windows.length} rows, the generator was trained for "
                f"{expected[0]} + {expected[1]}; materialize trained_gan again"
            )
        real, device = RealRows(windows, self.bins), next(self.generator.parameters()).device
        batches = []
        for first in range(0, len(starts), batch):
            rng = np.random.default_rng([seed, 1, first])
            condition = real.histories(starts[first : first + batch], rng, device)
            sample = self.generator.sample(condition, torch.Generator().manual_seed(int(rng.integers(1 << 62))))
            batches.append([part.cpu().numpy() for part in (*sample.rows[:3], sample.liquidity_back)])
            progress(min(first + batch, len(starts)), len(starts))
        bins, positions, origin, back = (np.concatenate(parts) for parts in zip(*batches, strict=True))
        return self.bins.decode(bins, positions.astype(np.float64)), Origins(origin, back)

    def save(self, folder: Path) -> None:
        """Write weights and bins as safetensors, configuration and history as JSON, into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(on_cpu(self.generator.state_dict()), folder / "generator.safetensors")
        save_file(on_cpu(self.critic.state_dict()), folder / "critic.safetensors")
        if self.control is not None:
            save_file(on_cpu(self.control.state_dict()), folder / _CONTROL_FILE)
        self.bins.save(folder)
        shape = {name: getattr(self.generator, name) for name in ("context", "length", "tick_spacing")}
        _write_json(folder / "config.json", {**shape, "seed": self.seed, "gan": self.config.model_dump()})
        _write_json(folder / "history.json", self.history)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TrainingError: if a file is missing, or the GAN was trained by a version with another generator.
        """
        names = ("generator.safetensors", "critic.safetensors", "bins.safetensors", "config.json", "history.json")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise TrainingError(f"{folder} has no {missing}; materialize trained_gan first")
        stored = json.loads((folder / "config.json").read_text())
        config, bins = GanConfig.model_validate(stored["gan"]), RowBins.load(folder)

        def loaded(name: str) -> Generator:
            generator = Generator(config, bins, stored["context"], stored["length"], stored["tick_spacing"])
            try:
                generator.load_state_dict(load_file(folder / name))
            except RuntimeError as error:  # other weights, or other sizes of them
                raise TrainingError(
                    f"{folder} was trained by another version, whose generator differs; materialize trained_gan again"
                ) from error
            return generator.eval()

        critic = Critic(config, bins.features)
        critic.load_state_dict(load_file(folder / "critic.safetensors"))
        history = json.loads((folder / "history.json").read_text())
        control = loaded(_CONTROL_FILE) if (folder / _CONTROL_FILE).is_file() else None
        return cls(config, stored["seed"], bins, loaded("generator.safetensors"), critic.eval(), history, control)

    def summary(self) -> dict[str, float]:
        """Numbers of parameters and the last losses, shown beside the artifact."""
        last = {
            f"{stage}_{name}": values[-1]
            for stage, columns in self.history.items()
            for name, values in columns.items()
            if name != "step" and values
        }
        return {
            "generator_parameters": float(sum(p.numel() for p in self.generator.parameters())),
            "critic_parameters": float(sum(p.numel() for p in self.critic.parameters())),
            **last,
        }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

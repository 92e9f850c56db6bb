"""Training: a likelihood warm start, then WGAN-GP on free-running samples, with exact resume.

What the second stage adds shows beside a control: a generator that goes on from the warm start by likelihood alone.

Every step draws its randomness from (seed, step) alone, so a run that was killed and resumed from a checkpoint ends
with the same weights as one that was not (on the CPU, with the same number of threads). Several processes share the
batches of one: the same rows in every step, but dropout, samples and noise of their own.
"""

import copy
import hashlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.critic import Critic
from apeagent_pipeline.gan.generator import Generator, Rows
from apeagent_pipeline.gan.training_rows import RealRows
from apeagent_pipeline.gan.weight_selection import HeldOutScore, held_out_score
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.workers import Workers, run_together, worker_count

_CHECKPOINT_SECONDS = 20.0
_CHECKPOINT_FILE = "checkpoint.safetensors"
_FORMAT = 4
_VALID_EVERY = 40
_VALID_WINDOWS = 128
_WARM_UP_STEPS = 20
_ANNEALING_POWER = 0.7
_CRITIC_DRIFT = 1e-3
_CANDIDATES = 3
_MODULES = ("generator", "averaged", "critic", "best", "control", "control_averaged")
_CONTROL_FILE = "control.safetensors"

History = dict[str, dict[str, list[float]]]


class TrainingError(ApeagentError, RuntimeError):
    """Training cannot start or has broken down; the message says why and what to change."""


@dataclass
class TrainedGan:
    """A generator with averaged weights, its critic, the bins of its rows, and how it was trained.

    Attributes:
        history: Stage ("likelihood", "adversarial", "control"; "held_out" and "control_held_out": scores of the weights
            that stood to choice, and of the control at its end) -> name -> values, ``step`` among the names.
        control: What likelihood alone made of the same warm start; None if it was not trained.
    """

    config: GanConfig
    seed: int
    bins: RowBins
    generator: Generator
    critic: Critic
    history: History = field(default_factory=dict)
    control: Generator | None = None

    def save(self, folder: Path) -> None:
        """Write weights and bins as safetensors, configuration and history as JSON, into ``folder``."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(_on_cpu(self.generator.state_dict()), folder / "generator.safetensors")
        save_file(_on_cpu(self.critic.state_dict()), folder / "critic.safetensors")
        if self.control is not None:
            save_file(_on_cpu(self.control.state_dict()), folder / _CONTROL_FILE)
        self.bins.save(folder)
        shape = {name: getattr(self.generator, name) for name in ("context", "length", "tick_spacing")}
        _write_json(folder / "config.json", {**shape, "seed": self.seed, "gan": self.config.model_dump()})
        _write_json(folder / "history.json", self.history)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            TrainingError: if a file is missing.
        """
        names = ("generator.safetensors", "critic.safetensors", "bins.safetensors", "config.json", "history.json")
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise TrainingError(f"{folder} has no {missing}; materialize trained_gan first")
        stored = json.loads((folder / "config.json").read_text())
        config, bins = GanConfig.model_validate(stored["gan"]), RowBins.load(folder)

        def loaded(name: str) -> Generator:
            generator = Generator(config, bins, stored["context"], stored["length"], stored["tick_spacing"])
            generator.load_state_dict(load_file(folder / name))
            return generator.eval()

        critic = Critic(config, bins.features)
        critic.load_state_dict(load_file(folder / "critic.safetensors"))
        history = json.loads((folder / "history.json").read_text())
        control = loaded(_CONTROL_FILE) if (folder / _CONTROL_FILE).is_file() else None
        return cls(config, stored["seed"], bins, loaded("generator.safetensors"), critic.eval(), history, control)

    def summary(self) -> dict[str, float]:
        """Sizes and last losses: numbers to show beside the artifact."""
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


def train_gan(  # noqa: PLR0917 - what to learn, how, and who watches
    windows: TrainingWindows,
    config: GanConfig,
    seed: int,
    progress: Progress = silent,
    checkpoint_dir: Path | None = None,
    log_dir: Path | None = None,
) -> TrainedGan:
    """Fit bins, warm the generator up by likelihood, then train it against the critic.

    Args:
        windows: Windows to learn from; only the train split is learned from, the valid split is only watched.
        config: Sizes and schedules.
        seed: Of everything random.
        progress: Called after every step of either stage with the newest losses.
        checkpoint_dir: Where to keep a checkpoint, written every 20 seconds. One that was made with the same
            configuration, seed and data is resumed from; any other is ignored and overwritten.
        log_dir: Where to write every loss for TensorBoard.

    Raises:
        TrainingError: if there is nothing to train on, or a loss is no longer a finite number.
        WorkerError: if a batch cannot be dealt to the processes, or one of several died again and again.
    """
    count = worker_count(config.workers, batch=config.batch, adversarial_batch=config.adversarial_batch)
    if count == 1:
        return _train(windows, config, seed, progress, checkpoint_dir, log_dir)
    with tempfile.TemporaryDirectory() as scratch:
        out, kept = Path(scratch) / "trained", checkpoint_dir or Path(scratch) / "checkpoint"
        run_together(count, _train_together, (windows, config, seed, kept, log_dir, out), progress)
        return TrainedGan.load(out)


def _train_together(  # noqa: PLR0917 - it is called with what `train_gan` was called with
    windows: TrainingWindows,
    config: GanConfig,
    seed: int,
    checkpoint_dir: Path,
    log_dir: Path | None,
    out: Path,
    progress: Progress,
    workers: Workers,
) -> None:
    """What every one of several processes does; the first of them writes what was trained into ``out``."""
    trained = _train(windows, config, seed, progress, checkpoint_dir, log_dir, workers)
    if workers.rank == 0:
        trained.save(out)


def _train(  # noqa: PLR0917 - as `train_gan`
    windows: TrainingWindows,
    config: GanConfig,
    seed: int,
    progress: Progress,
    checkpoint_dir: Path | None,
    log_dir: Path | None,
    workers: Workers | None = None,
) -> TrainedGan:
    run = _Run(windows, config, seed, workers)
    if checkpoint_dir is not None:
        run.resume(checkpoint_dir / _CHECKPOINT_FILE)
    if run.workers.rank:  # the first process writes for all
        checkpoint_dir = log_dir = None
    log = None if log_dir is None else SummaryWriter(str(log_dir), purge_step=run.step)
    saved = time.monotonic()
    while run.step < config.steps:
        losses = run.next_step()
        broken = {name: value for name, value in losses.items() if not np.isfinite(value)}
        if broken:
            raise TrainingError(
                f"step {run.step} gives {broken}: training has diverged; lower likelihood_rate or adversarial_rate"
            )
        run.step += 1
        run.consider()
        progress(run.step, config.steps, **losses)
        if log is not None:
            for name, value in losses.items():
                log.add_scalar(name, value, run.step)
        if checkpoint_dir is not None and time.monotonic() - saved > _CHECKPOINT_SECONDS:
            run.checkpoint(checkpoint_dir / _CHECKPOINT_FILE)
            saved = time.monotonic()
    if log is not None:
        log.close()
    return run.result()


class _Run:
    """Everything that changes while training."""

    def __init__(self, windows: TrainingWindows, config: GanConfig, seed: int, workers: Workers | None = None) -> None:
        self.config, self.seed, self.context, self.length = config, seed, windows.context, windows.length
        self.tick_spacing = int(windows.scaler["tick_spacing"])
        self.workers = workers or Workers(together=False)
        self.device = self.workers.device
        rows = windows.free_features()
        train = (windows.table["split"] == "train").to_numpy()
        self.starts, self.valid_starts = windows.starts("train"), windows.starts("valid")
        if len(self.starts) == 0:
            raise TrainingError("training_windows holds no window of the train split; sync more days")
        self.bins = RowBins.fit(rows[train], config.bins)
        self.rows = RealRows(windows, self.bins)
        settings = [config.model_dump(), seed, self.context, self.length]
        self.fingerprint = _fingerprint(np.hstack([rows, self.rows.market]), self.starts, settings)

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(seed, 0))
            self.generator = Generator(config, self.bins, self.context, self.length, self.tick_spacing).to(self.device)
            self.critic = Critic(config, self.bins.features).to(self.device)
        centre, scale = self.rows.state_scale(train)
        self.generator.state_centre.copy_(centre)
        self.generator.state_scale.copy_(scale)
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.likelihood_optimizer = torch.optim.AdamW(
            self.generator.parameters(), lr=config.likelihood_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
        )
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), lr=config.adversarial_rate, betas=(0.5, 0.9)
        )
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), lr=config.critic_rate, betas=(0.0, 0.9))
        self.control, self.control_averaged = copy.deepcopy(self.generator), copy.deepcopy(self.averaged)
        self.control_optimizer = torch.optim.Adam(
            self.control.parameters(), lr=config.adversarial_rate, betas=(0.5, 0.9)
        )
        self.step = 0
        stages = ("likelihood", "adversarial", "control", "held_out", "control_held_out")
        self.history: History = {stage: {} for stage in stages}
        # The weights to keep, and how far the classifier was from a coin on their windows.
        self.best, self.best_distance = copy.deepcopy(self.averaged), float("inf")
        self.valid = float("nan")

    # One step of each stage

    def next_step(self) -> dict[str, float]:
        """The step of the stage that training has come to; returns its losses."""
        if self.step < self.config.likelihood_steps:
            return self.likelihood_step()
        return self.adversarial_step() if self.step < self.config.generator_steps else self.control_step()

    def likelihood_step(self) -> dict[str, float]:
        """Raise the likelihood of real windows; learning rate annealed to zero, weights averaged."""
        rng = np.random.default_rng([self.seed, 1, self.step])
        condition, window = self._windows(rng.choice(self.starts, self.config.batch), rng)
        done = self.step / self.config.likelihood_steps
        warm = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        _set_rate(self.likelihood_optimizer, self.config.likelihood_rate * warm * (1 - done) ** _ANNEALING_POWER)
        self.generator.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._own_seed())
            loss = -self.generator.log_likelihood(condition, window).mean()
        self._descend(self.likelihood_optimizer, self.generator, loss)
        # A young average would still remember the random start.
        _average(self.averaged, self.generator, min(self.config.ema, (1 + self.step) / (10 + self.step)))
        losses = {"loss": loss.item()}
        last = self.step + 1 == self.config.likelihood_steps
        if len(self.valid_starts) and (last or (self.step + 1) % _VALID_EVERY == 0):
            self.valid = self._valid_loss()
            self._remember("likelihood", {**losses, "valid": self.valid})
        if last:
            for module in (self.generator, self.control, self.control_averaged):
                module.load_state_dict(self.averaged.state_dict())
        return losses if np.isnan(self.valid) else {**losses, "valid": self.valid}

    def adversarial_step(self) -> dict[str, float]:
        """Let the critic tell free-running samples from what really followed, then teach the generator by its scores.

        Positions inside bins are continuous: the critic's gradient reaches them through the relaxed rows. Choices are
        not: each is made more likely by how much the scores from its row on exceed those of other samples that continue
        the same history. The likelihood of real rows anchors both.
        """
        config, generator = self.config, self.generator
        begun = self.step - config.likelihood_steps
        rng = np.random.default_rng([self.seed, 2, self.step])
        chance = torch.Generator().manual_seed(self._own_seed())
        starts = np.repeat(rng.choice(self.starts, config.adversarial_batch), config.samples)
        condition, window = self._windows(starts, rng)
        # Without dropout: the samples are what the generator would really produce.
        generator.eval()
        fake = generator.sample(condition, chance)
        with torch.no_grad():
            seen = [generator.seen(rows) for rows in (condition, window, fake.rows)]
        sigma = config.instance_noise * (1 - begun / max(config.adversarial_steps, 1))
        losses: dict[str, float] = {}
        for _ in range(config.critic_steps):
            losses = self._critic_step(seen, sigma, chance)

        relaxed = generator.seen(generator.relaxed(fake))
        active = self.critic.activations(seen[0], relaxed + sigma * _normal_like(relaxed, chance))
        noisy = seen[1] + sigma * _normal_like(seen[1], chance)
        wanted = self.critic.activations(seen[0], noisy).mean(dim=(0, 1)).detach()
        off = active.mean(dim=(0, 1)) - wanted
        adversarial, matching = -self._score(active).mean(), off.square().sum()
        # Two noises for one row must not end in one place (mode seeking, Mao et al. 2019).
        noise = torch.rand(fake.noise.shape, generator=chance).to(fake.noise.device)
        other = generator.seen(generator.relaxed(fake._replace(noise=noise)))
        apart = (relaxed - other).abs().mean() / (fake.noise - noise).abs().mean()

        with torch.no_grad():
            # What each window adds to the loss of feature matching, to first order.
            pull = -2 * config.feature_matching * (active.mean(dim=1) @ off)
            batch = self.critic.compare(active) if config.minibatch_discrimination else torch.zeros_like(pull)
            rest = self.critic(active).flip(1).cumsum(1).flip(1) / self.length
            advantage = _against_siblings(rest + (pull + batch)[:, None], config.samples)
        choices, _ = generator.choices(condition, fake.rows)
        praise = (advantage * choices.log_likelihood()).mean()
        generator.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._own_seed())
            real = self._windows(rng.choice(self.starts, config.batch), rng)
            likelihood = generator.log_likelihood(*real).mean()
        loss = adversarial + config.feature_matching * matching - config.diversity * apart
        loss = loss - config.policy * praise - config.anchor * likelihood
        self._descend(self.generator_optimizer, generator, loss)
        _average(self.averaged, generator, config.adversarial_ema)
        losses |= {"generator": adversarial.item(), "feature_matching": matching.item(), "diversity": apart.item()}
        losses |= {"loss": -likelihood.item()}
        self._remember("adversarial", losses)
        return losses

    def control_step(self) -> dict[str, float]:
        """Raise the likelihood of real windows further, at the rate and with the averaging of the adversarial stage."""
        rng = np.random.default_rng([self.seed, 9, self.step])
        real = self._windows(rng.choice(self.starts, self.config.batch), rng)
        self.control.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._own_seed())
            loss = -self.control.log_likelihood(*real).mean()
        self._descend(self.control_optimizer, self.control, loss)
        _average(self.control_averaged, self.control, self.config.adversarial_ema)
        losses = {"loss": loss.item()}
        if (self.step + 1) % _VALID_EVERY == 0:
            self._remember("control", losses)
        return losses

    def _critic_step(self, seen: list[Tensor], sigma: float, chance: torch.Generator) -> dict[str, float]:
        condition, real, fake = seen
        real = real + sigma * _normal_like(real, chance)
        fake = fake + sigma * _normal_like(fake, chance)
        scores = [self._score(self.critic.activations(condition, rows)) for rows in (real, fake)]
        distance = scores[0].mean() - scores[1].mean()
        # Between the real and the generated continuation of one history, and without the statistics of the batch.
        mix = torch.rand(len(real), 1, 1, generator=chance).to(real.device)
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        score = self.critic(self.critic.activations(condition, between)).mean(dim=1).sum()
        (slope,) = torch.autograd.grad(score, between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        drift = (scores[0].square() + scores[1].square()).mean()
        loss = -distance + self.config.gradient_penalty * penalty + _CRITIC_DRIFT * drift
        self._descend(self.critic_optimizer, self.critic, loss)
        return {"critic": distance.item(), "gp": penalty.item()}

    def _score(self, activations: Tensor) -> Tensor:
        """Score of every window, [n]."""
        score = self.critic(activations).mean(dim=1)
        return score + self.critic.compare(activations) if self.config.minibatch_discrimination else score

    @torch.no_grad()
    def _valid_loss(self) -> float:
        every = max(1, len(self.valid_starts) // _VALID_WINDOWS)
        rng = np.random.default_rng([self.seed, 3])
        condition, window = self.rows.windows(self.valid_starts[::every], rng, self.device)
        return float(-self.averaged.log_likelihood(condition, window).mean())

    def consider(self) -> None:
        """At the end of the warm start and thrice after it: keep the weights if they score better held out."""
        begun, end = self.step - self.config.likelihood_steps, self.config.generator_steps
        every = max(1, -(-self.config.adversarial_steps // _CANDIDATES))
        if begun < 0 or self.step > end or (begun % every and self.step < end):
            return
        score = self._held_out("held_out", self.averaged)
        # Weights that copy are worse than any that do not.
        distance = 0.0 if score is None else score.distance + (score.copied > self.config.largest_copied)
        if score is None or distance < self.best_distance:
            self.best, self.best_distance = copy.deepcopy(self.averaged), distance

    def _held_out(self, stage: str, generator: Generator) -> HeldOutScore | None:
        splits = self.starts, self.valid_starts
        score = held_out_score(generator, self.bins, self.rows, splits, self.seed, most=self.config.judged_windows)
        if score is not None:
            self._remember(stage, {**score._asdict(), "step": float(self.step)})
        return score

    # Steps of an optimizer, history, checkpoints

    def _windows(self, starts: np.ndarray, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """This process's part of the windows of a batch; every process draws the whole of it alike."""
        condition, window = self.rows.windows(starts, rng, self.device)
        return self.workers.share(condition), self.workers.share(window)

    def _own_seed(self) -> int:
        """Of what this process draws in this step for itself."""
        own = (self.workers.rank,) if self.workers.count > 1 else ()
        return _mix(self.seed, self.step + 1, *own)

    def _descend(self, optimizer: torch.optim.Optimizer, model: nn.Module, loss: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.workers.average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0 if model is self.critic else 1.0)
        optimizer.step()

    def _remember(self, stage: str, losses: dict[str, float]) -> None:
        columns = self.history[stage]
        for name, value in {"step": float(self.step + 1), **losses}.items():
            columns.setdefault(name, []).append(value)

    def result(self) -> TrainedGan:
        control = None
        if self.config.control_steps:
            self._held_out("control_held_out", self.control_averaged)
            control = self.control_averaged.cpu()
        generator, critic = self.best.cpu(), self.critic.cpu().eval()
        return TrainedGan(self.config, self.seed, self.bins, generator, critic, self.history, control)

    def _optimizers(self) -> dict[str, torch.optim.Optimizer]:
        return {
            "likelihood": self.likelihood_optimizer,
            "generator": self.generator_optimizer,
            "critic": self.critic_optimizer,
            "control": self.control_optimizer,
        }

    def checkpoint(self, path: Path) -> None:
        """Write the whole state into one file, which is there completely or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        modules = {name: getattr(self, name) for name in _MODULES}
        tensors = {f"{name}/{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
        for name, optimizer in self._optimizers().items():
            for index, state in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
        state = {"step": self.step, "history": self.history}
        # JSON knows neither NaN nor infinity.
        state |= {name: value for name in ("valid", "best_distance") if np.isfinite(value := getattr(self, name))}
        metadata = {"fingerprint": self.fingerprint, "state": json.dumps(state)}
        temporary = path.with_suffix(".tmp")
        save_file(_on_cpu(tensors), temporary, metadata=metadata)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint of the same configuration, seed and data, if there is one."""
        if not path.is_file():
            return
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        if metadata.get("fingerprint") != self.fingerprint:
            return
        tensors = load_file(path)
        for name in _MODULES:
            getattr(self, name).load_state_dict(_below(tensors, f"{name}/"))
        for name, optimizer in self._optimizers().items():
            states: dict[int, dict[str, Any]] = {}
            for key, value in _below(tensors, f"optimizer/{name}/").items():
                index, entry = key.split("/")
                states.setdefault(int(index), {})[entry] = value
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": states, "param_groups": groups})
        state = json.loads(metadata["state"])
        self.step, self.history = state["step"], state["history"]
        self.valid = state.get("valid", float("nan"))
        self.best_distance = state.get("best_distance", float("inf"))


def _fingerprint(rows: np.ndarray, starts: np.ndarray, settings: list[Any]) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, torch.__version__, *settings], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(rows).tobytes())
    digest.update(np.ascontiguousarray(starts).tobytes())
    return digest.hexdigest()


def _mix(*seeds: int) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def _normal_like(tensor: Tensor, chance: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=chance).to(tensor.device)


def _against_siblings(rewards: Tensor, samples: int) -> Tensor:
    """Rewards [n, T] against the mean of the other ``samples`` that continue the same history, in deviations."""
    groups = rewards.view(-1, samples, rewards.shape[1])
    others = (groups.sum(dim=1, keepdim=True) - groups) / max(samples - 1, 1)
    advantage = (groups - others).view_as(rewards)
    return advantage / (advantage.std() + 1e-6)


def _set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    theirs = [parameter.detach() for parameter in model.parameters()]
    torch._foreach_lerp_([parameter.detach() for parameter in averaged.parameters()], theirs, 1.0 - decay)


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")

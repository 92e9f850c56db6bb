"""Training of the GAN: a likelihood warm start, then WGAN-GP on free-running samples, with exact resume.

A control continues the warm start by likelihood alone, so that the effect of the adversarial stage can be measured.

The randomness of every step depends on (seed, step) only. A run that is killed and resumes from a checkpoint therefore
ends with the same weights as an undisturbed run (on the CPU, with the same number of threads). Several processes share
each batch: the rows are those of a single process, but each process draws its own dropout, samples and noise.
"""

import copy
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from apeagent_pipeline.gan.bins import RowBins
from apeagent_pipeline.gan.checkpoint import checkpoint, fingerprint, resume
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.critic import Critic, policy_advantages
from apeagent_pipeline.gan.generator import Generator
from apeagent_pipeline.gan.rows import Rows, Sample
from apeagent_pipeline.gan.trained_gan import History, TrainedGan, TrainingError
from apeagent_pipeline.gan.training_rows import RealRows
from apeagent_pipeline.gan.weight_selection import HeldOutScore, held_out_score
from apeagent_pipeline.market.windows import TrainingWindows
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.workers import Workers, run_together, worker_count

CHECKPOINT_SECONDS = 20.0
"""Time between two checkpoints."""

_CHECKPOINT_FILE = "checkpoint.safetensors"
_VALID_EVERY = 40
_VALID_WINDOWS = 128
_WARM_UP_STEPS = 20
_ANNEALING_POWER = 0.7
_CRITIC_DRIFT = 1e-3
_CANDIDATES = 3
"""Weights that are scored during the adversarial stage, besides those of the warm start."""


@dataclass(frozen=True)
class _Task:
    """The arguments of `train_gan`, as they are sent to other processes."""

    windows: TrainingWindows
    config: GanConfig
    seed: int
    checkpoint_dir: Path | None
    log_dir: Path | None


def train_gan(
    windows: TrainingWindows,
    config: GanConfig,
    seed: int,
    *,
    progress: Progress = silent,
    checkpoint_dir: Path | None = None,
    log_dir: Path | None = None,
) -> TrainedGan:
    """Fit the bins, train the generator by likelihood, then against the critic.

    Args:
        windows: Training windows; the weights learn from the train split, the valid split selects among them.
        config: Sizes and schedules; `GanConfig.for_rows` says how many steps are taken.
        seed: Decides all randomness.
        progress: Called after every step with the newest losses.
        checkpoint_dir: Folder of the checkpoint, which is written every 20 seconds. A checkpoint of the same
            configuration, seed and data is resumed; any other is ignored and overwritten.
        log_dir: Folder of the TensorBoard log of all losses.

    Raises:
        TrainingError: if there is no train window, or a loss is not finite.
        WorkerError: if the processes cannot share a batch equally, or one of them failed too often.
    """
    count = worker_count(config.workers, batch=config.batch, adversarial_batch=config.adversarial_batch)
    task = _Task(windows, config, seed, checkpoint_dir, log_dir)
    if count == 1:
        return _train(task, progress, Workers(together=False))
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "trained"
        # Restarted processes need a checkpoint even if the caller wants none.
        task = replace(task, checkpoint_dir=checkpoint_dir or Path(scratch) / "checkpoint")
        run_together(count, _train_together, (task, out), progress)
        return TrainedGan.load(out)


def _train_together(task: _Task, out: Path, progress: Progress, workers: Workers) -> None:
    """The work of one of several processes; the first one saves the trained GAN to ``out``."""
    trained = _train(task, progress, workers)
    if workers.rank == 0:
        trained.save(out)


def _train(task: _Task, progress: Progress, workers: Workers) -> TrainedGan:
    training = Training(task.windows, task.config, task.seed, workers)
    if task.checkpoint_dir is not None:
        training.resume(task.checkpoint_dir / _CHECKPOINT_FILE)
    if workers.rank:  # the first process writes for all
        task = replace(task, checkpoint_dir=None, log_dir=None)
    log = None if task.log_dir is None else SummaryWriter(str(task.log_dir), purge_step=training.step)
    saved = time.monotonic()
    while training.step < (steps := training.config.steps):
        losses = training.next_step()
        if broken := {name: value for name, value in losses.items() if not np.isfinite(value)}:
            raise TrainingError(
                f"training has diverged: the losses of step {training.step} are {broken}; lower likelihood_rate or "
                "adversarial_rate"
            )
        training.step += 1
        training.keep_best()
        progress(training.step, steps, **losses)
        if log is not None:
            for name, value in losses.items():
                log.add_scalar(name, value, training.step)
        if task.checkpoint_dir is not None and time.monotonic() - saved > CHECKPOINT_SECONDS:
            training.checkpoint(task.checkpoint_dir / _CHECKPOINT_FILE)
            saved = time.monotonic()
    if log is not None:
        log.close()
    return training.result()


class Training:
    """Everything that changes during training, and the step of each stage.

    Attributes:
        step: Number of finished steps, of all stages together.
        averaged: Exponential moving average (EMA) of the generator's weights, in evaluation mode.
        best: The averaged weights with the best held-out score so far.
        best_distance: Their `HeldOutScore.distance`.
        valid_loss: Last likelihood loss on valid windows; NaN before the first.
        control: The generator that continues the warm start by likelihood alone; ``control_averaged`` is its EMA.
    """

    def __init__(self, windows: TrainingWindows, config: GanConfig, seed: int, workers: Workers | None = None) -> None:
        self.seed, self.context, self.length = seed, windows.context, windows.length
        self.workers = workers or Workers(together=False)
        self.device = self.workers.device
        rows = windows.free_features()
        train = (windows.table["split"] == "train").to_numpy()
        self.config = config = config.for_rows(int(train.sum()))
        self.starts, self.valid_starts = windows.starts("train"), windows.starts("valid")
        if len(self.starts) == 0:
            raise TrainingError("training_windows holds no window of the train split; sync more days")
        self.bins = RowBins.fit(rows[train], config.bins)
        self.rows = RealRows(windows, self.bins)
        settings = [config.model_dump(), seed, self.context, self.length]
        self.fingerprint = fingerprint([np.hstack([rows, self.rows.market]), self.starts], settings)

        spacing = int(windows.scaler["tick_spacing"])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_derived_seed(seed, 0))
            self.generator = Generator(config, self.bins, self.context, self.length, spacing).to(self.device)
            self.critic = Critic(config, self.bins.features).to(self.device)
        centre, scale = self.rows.state_scale(train)
        self.generator.state_centre.copy_(centre)
        self.generator.state_scale.copy_(scale)
        self.averaged = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.control, self.control_averaged = copy.deepcopy(self.generator), copy.deepcopy(self.averaged)
        self.best, self.best_distance = copy.deepcopy(self.averaged), float("inf")
        names = ("generator", "averaged", "critic", "best", "control", "control_averaged")
        self.modules: dict[str, nn.Module] = {name: getattr(self, name) for name in names}
        adam, rate, parameters = torch.optim.Adam, config.adversarial_rate, self.generator.parameters
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "likelihood": torch.optim.AdamW(
                parameters(), lr=config.likelihood_rate, betas=(0.9, 0.98), weight_decay=config.weight_decay
            ),
            "generator": adam(parameters(), lr=rate, betas=(0.5, 0.9)),
            "critic": adam(self.critic.parameters(), lr=config.critic_rate, betas=(0.0, 0.9)),
            "control": adam(self.control.parameters(), lr=rate, betas=(0.5, 0.9)),
        }
        self.step = 0
        stages = ("likelihood", "adversarial", "control", "held_out", "control_held_out")
        self.history: History = {stage: {} for stage in stages}
        self.valid_loss = float("nan")

    # One step of each stage

    def next_step(self) -> dict[str, float]:
        """Train one step of the current stage; returns its losses."""
        if self.step < self.config.likelihood_steps:
            return self.likelihood_step()
        return self.adversarial_step() if self.step < self.config.generator_steps else self.control_step()

    def likelihood_step(self) -> dict[str, float]:
        """Raise the likelihood of real windows, with a learning rate annealed to zero and averaged weights."""
        rng = np.random.default_rng([self.seed, 1, self.step])
        condition, window = self._windows(rng.choice(self.starts, self.config.batch), rng)
        done = self.step / self.config.likelihood_steps
        warm_up = min(1.0, (self.step + 1) / _WARM_UP_STEPS)
        for group in self.optimizers["likelihood"].param_groups:
            group["lr"] = self.config.likelihood_rate * warm_up * (1 - done) ** _ANNEALING_POWER
        self.generator.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._process_seed())
            loss = -self.generator.log_likelihood(condition, window).mean()
        self._optimize("likelihood", self.generator, loss)
        # With the full decay, an average of few steps would still consist mostly of the random initial weights.
        _average(self.averaged, self.generator, min(self.config.ema, (1 + self.step) / (10 + self.step)))
        losses = {"loss": loss.item()}
        last = self.step + 1 == self.config.likelihood_steps
        if len(self.valid_starts) and (last or (self.step + 1) % _VALID_EVERY == 0):
            self.valid_loss = self._valid_loss()
            self._record("likelihood", {**losses, "valid": self.valid_loss})
        if last:
            for module in (self.generator, self.control, self.control_averaged):
                module.load_state_dict(self.averaged.state_dict())
        return losses if np.isnan(self.valid_loss) else {**losses, "valid": self.valid_loss}

    def adversarial_step(self) -> dict[str, float]:
        """Train the critic on free-running samples, then the generator on the critic's scores.

        Positions inside bins are continuous: the critic's gradient reaches them through the relaxed rows. Discrete
        choices use policy gradients (`policy_advantages`). The likelihood of real rows anchors both.
        """
        config, generator = self.config, self.generator
        rng = np.random.default_rng([self.seed, 2, self.step])
        torch_rng = torch.Generator().manual_seed(self._process_seed())
        starts = np.repeat(rng.choice(self.starts, config.adversarial_batch), config.samples)
        condition, window = self._windows(starts, rng)
        generator.eval()  # samples are drawn as in production, without dropout
        sample = generator.sample(condition, torch_rng)
        with torch.no_grad():
            history, real, fake = (generator.critic_view(rows) for rows in (condition, window, sample.rows))
        done = (self.step - config.likelihood_steps) / max(config.adversarial_steps, 1)
        sigma = config.instance_noise * (1 - done)
        losses: dict[str, float] = {}
        for _ in range(config.critic_steps):
            losses = self._critic_step(history, real, fake, sigma, torch_rng)

        relaxed = generator.critic_view(generator.relaxed(sample))
        active = self.critic.activations(history, relaxed + sigma * _normal_like(relaxed, torch_rng))
        noisy = real + sigma * _normal_like(real, torch_rng)
        mean_gap = active.mean(dim=(0, 1)) - self.critic.activations(history, noisy).mean(dim=(0, 1)).detach()
        adversarial, matching = -self.critic.window_scores(active).mean(), mean_gap.square().sum()
        diversity = self._diversity(sample, relaxed, torch_rng)
        choices, _ = generator.choices(condition, sample.rows)
        policy = (self._advantages(active, mean_gap) * choices.log_likelihood()).mean()
        generator.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._process_seed())
            batch = self._windows(rng.choice(self.starts, config.batch), rng)
            likelihood = generator.log_likelihood(*batch).mean()
        loss = adversarial + config.feature_matching * matching - config.diversity * diversity
        loss = loss - config.policy * policy - config.anchor * likelihood
        self._optimize("generator", generator, loss)
        _average(self.averaged, generator, config.adversarial_ema)
        losses |= {"generator": adversarial.item(), "feature_matching": matching.item(), "diversity": diversity.item()}
        losses |= {"loss": -likelihood.item()}
        self._record("adversarial", losses)
        return losses

    def control_step(self) -> dict[str, float]:
        """Raise the likelihood further, with the learning rate and averaging of the adversarial stage."""
        rng = np.random.default_rng([self.seed, 9, self.step])
        batch = self._windows(rng.choice(self.starts, self.config.batch), rng)
        self.control.train()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._process_seed())
            loss = -self.control.log_likelihood(*batch).mean()
        self._optimize("control", self.control, loss)
        _average(self.control_averaged, self.control, self.config.adversarial_ema)
        losses = {"loss": loss.item()}
        if (self.step + 1) % _VALID_EVERY == 0:
            self._record("control", losses)
        return losses

    def _critic_step(
        self, history: Tensor, real: Tensor, fake: Tensor, sigma: float, torch_rng: torch.Generator
    ) -> dict[str, float]:
        """One WGAN-GP step on critic views, with instance noise of standard deviation ``sigma``."""
        real = real + sigma * _normal_like(real, torch_rng)
        fake = fake + sigma * _normal_like(fake, torch_rng)
        scores = [self.critic.window_scores(self.critic.activations(history, rows)) for rows in (real, fake)]
        distance = scores[0].mean() - scores[1].mean()
        # Interpolated between the real and the generated continuation of the same history; the minibatch score is left
        # out, because the penalty is defined for single windows.
        mix = torch.rand(len(real), 1, 1, generator=torch_rng).to(real.device)
        between = (mix * real + (1 - mix) * fake).requires_grad_(True)
        score = self.critic(self.critic.activations(history, between)).mean(dim=1).sum()
        (slope,) = torch.autograd.grad(score, between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        drift = (scores[0].square() + scores[1].square()).mean()
        loss = -distance + self.config.gradient_penalty * penalty + _CRITIC_DRIFT * drift
        self._optimize("critic", self.critic, loss)
        return {"critic": distance.item(), "gp": penalty.item()}

    def _diversity(self, sample: Sample, relaxed: Tensor, torch_rng: torch.Generator) -> Tensor:
        """Change of the relaxed rows per change of their noise: mode seeking (Mao et al. 2019)."""
        noise = torch.rand(sample.noise.shape, generator=torch_rng).to(sample.noise.device)
        other = self.generator.critic_view(self.generator.relaxed(sample._replace(noise=noise)))
        return (relaxed - other).abs().mean() / (sample.noise - noise).abs().mean()

    @torch.no_grad()
    def _advantages(self, active: Tensor, mean_gap: Tensor) -> Tensor:
        """Advantage of the choices of every sampled row [n, T], from its score-to-go and the window's other terms."""
        # Contribution of each window to the loss of feature matching, to first order.
        matching = -2 * self.config.feature_matching * (active.mean(dim=1) @ mean_gap)
        to_go = self.critic(active).flip(1).cumsum(1).flip(1) / self.length
        return policy_advantages(to_go + (matching + self.critic.compare(active))[:, None], self.config.samples)

    # Which weights are kept

    def keep_best(self) -> None:
        """After the warm start and at `_CANDIDATES` steps of the next stage: keep the averaged weights if better."""
        begun, end = self.step - self.config.likelihood_steps, self.config.generator_steps
        every = max(1, -(-self.config.adversarial_steps // _CANDIDATES))
        if begun < 0 or self.step > end or (begun % every and self.step < end):
            return
        score = self._held_out("held_out", self.averaged)
        # A generator that copies ranks below all that do not.
        distance = 0.0 if score is None else score.distance + (score.copied > self.config.largest_copied)
        if score is None or distance < self.best_distance:
            self.best.load_state_dict(self.averaged.state_dict())
            self.best_distance = distance

    def _held_out(self, stage: str, generator: Generator) -> HeldOutScore | None:
        splits, limit = (self.starts, self.valid_starts), self.config.judged_windows
        score = held_out_score(generator, self.bins, self.rows, splits, self.seed, max_windows=limit)
        if score is not None:
            self._record(stage, {**score._asdict(), "step": float(self.step)})
        return score

    @torch.no_grad()
    def _valid_loss(self) -> float:
        every = max(1, len(self.valid_starts) // _VALID_WINDOWS)
        rng = np.random.default_rng([self.seed, 3])
        condition, window = self.rows.windows(self.valid_starts[::every], rng, self.device)
        return float(-self.averaged.log_likelihood(condition, window).mean())

    # Batches, optimizers, history, checkpoints

    def _windows(self, starts: np.ndarray, rng: np.random.Generator) -> tuple[Rows, Rows]:
        """This process's share of the windows of a batch; every process draws the same batch."""
        condition, window = self.rows.windows(starts, rng, self.device)
        return self.workers.share(condition), self.workers.share(window)

    def _process_seed(self) -> int:
        """Seed of what this process draws for itself in this step."""
        rank = (self.workers.rank,) if self.workers.count > 1 else ()
        return _derived_seed(self.seed, self.step + 1, *rank)

    def _optimize(self, name: str, model: nn.Module, loss: Tensor) -> None:
        """One step of the optimizer ``name``, with gradients averaged over all processes and clipped."""
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.workers.average_gradients(model)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0 if model is self.critic else 1.0)
        optimizer.step()

    def _record(self, stage: str, losses: dict[str, float]) -> None:
        for name, value in {"step": float(self.step + 1), **losses}.items():
            self.history[stage].setdefault(name, []).append(value)

    def result(self) -> TrainedGan:
        """The trained GAN, on the CPU; scores the control if there is one."""
        control = None
        if self.config.control_steps:
            self._held_out("control_held_out", self.control_averaged)
            control = self.control_averaged.cpu()
        generator, critic = self.best.cpu(), self.critic.cpu().eval()
        return TrainedGan(self.config, self.seed, self.bins, generator, critic, self.history, control)

    def checkpoint(self, path: Path) -> None:
        """Write a checkpoint."""
        numbers = {"valid": self.valid_loss, "best_distance": self.best_distance}
        finite = {name: value for name, value in numbers.items() if np.isfinite(value)}
        state = {"step": self.step, "history": self.history, **finite}
        checkpoint(path, self.fingerprint, self.modules, self.optimizers, state)

    def resume(self, path: Path) -> None:
        """Resume from a checkpoint of the same configuration, seed and data, if there is one."""
        state = resume(path, self.fingerprint, self.modules, self.optimizers)
        if state is not None:
            self.step, self.history = state["step"], state["history"]
            self.valid_loss = state.get("valid", float("nan"))
            self.best_distance = state.get("best_distance", float("inf"))


def _derived_seed(*seeds: int) -> int:
    return int(np.random.SeedSequence(seeds).generate_state(1)[0])


def _normal_like(tensor: Tensor, torch_rng: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=torch_rng).to(tensor.device)


@torch.no_grad()
def _average(averaged: nn.Module, model: nn.Module, decay: float) -> None:
    """Move the averaged parameters towards those of ``model``."""
    new = [parameter.detach() for parameter in model.parameters()]
    torch._foreach_lerp_([parameter.detach() for parameter in averaged.parameters()], new, 1.0 - decay)

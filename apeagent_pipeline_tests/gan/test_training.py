import copy
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from apeagent_pipeline.gan import training
from apeagent_pipeline.gan.config import GanConfig
from apeagent_pipeline.gan.critic import policy_advantages
from apeagent_pipeline.gan.market_state import state_after
from apeagent_pipeline.gan.rows import LIQUIDITY, RANGE, SIZE, STATE
from apeagent_pipeline.gan.trained_gan import TrainedGan, TrainingError
from apeagent_pipeline.gan.training import Training, train_gan
from apeagent_pipeline.gan.training_rows import RealRows
from apeagent_pipeline.gan.weight_selection import HeldOutScore, held_out_score


class Killed(Exception):
    pass


def weights(gan):
    parts = {"generator": gan.generator, "critic": gan.critic, "control": gan.control}
    return {f"{part}.{name}": w.clone() for part, model in parts.items() for name, w in model.state_dict().items()}


def recorded_steps():
    steps = []
    return steps, lambda done, total, **losses: steps.append(done)


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def watched(windows, tiny, tmp_path_factory):
    """The training of ``gan`` once more, with all that it reported, and the folder that TensorBoard reads."""
    shown, folder = [], tmp_path_factory.mktemp("log")

    def report(done, total, **losses):
        shown.append((done, total, losses))

    gan = train_gan(windows, tiny, 1, progress=report, log_dir=folder)
    return SimpleNamespace(gan=gan, shown=shown, folder=folder)


@pytest.fixture(scope="module")
def other_seed(windows, tiny, tmp_path_factory):
    """A GAN of another seed, and the folder with its last checkpoint."""
    folder = tmp_path_factory.mktemp("other")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
        gan = train_gan(windows, tiny, 2, checkpoint_dir=folder)
    return SimpleNamespace(gan=gan, folder=folder)


@pytest.mark.parametrize("killed_after", [4, 8, 10], ids=["warm start", "adversarial stage", "control"])
def test_a_killed_training_resumes_to_the_same_weights(windows, tiny, gan, tmp_path, monkeypatch, killed_after):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)

    def kill(done, total, **losses):
        # The checkpoint of this step is written after it was reported.
        if done == killed_after + 1:
            raise Killed

    with pytest.raises(Killed):
        train_gan(windows, tiny, 1, progress=kill, checkpoint_dir=tmp_path)
    steps, report = recorded_steps()
    resumed = train_gan(windows, tiny, 1, progress=report, checkpoint_dir=tmp_path)
    assert steps[0] == killed_after + 1
    assert same(weights(resumed), weights(gan))
    assert resumed.history == gan.history
    assert not list(tmp_path.glob("*.tmp"))


def test_a_checkpoint_of_another_seed_or_configuration_is_not_taken(
    windows, tiny, gan, other_seed, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", -1.0)
    shutil.copytree(other_seed.folder, tmp_path, dirs_exist_ok=True)
    assert list(tmp_path.iterdir())
    assert same(weights(train_gan(windows, tiny, 1, checkpoint_dir=tmp_path)), weights(gan))
    other = tiny.model_copy(update={"diversity": 0.0})

    def stop_at_once(done, total, **losses):
        assert done == 1
        raise Killed

    with pytest.raises(Killed):
        train_gan(windows, other, 1, progress=stop_at_once, checkpoint_dir=tmp_path)


def test_the_seed_decides_the_weights(gan, watched, other_seed):
    assert same(weights(watched.gan), weights(gan))
    assert not same(weights(other_seed.gan), weights(gan))


def test_saved_gans_come_back(gan, tmp_path):
    gan.save(tmp_path)
    again = TrainedGan.load(tmp_path)
    assert same(weights(again), weights(gan))
    assert (again.config, again.seed, again.history) == (gan.config, gan.seed, gan.history)
    assert {path.name for path in tmp_path.iterdir()} == {
        "generator.safetensors",
        "critic.safetensors",
        "control.safetensors",
        "bins.safetensors",
        "config.json",
        "history.json",
    }
    with pytest.raises(TrainingError, match="materialize trained_gan"):
        TrainedGan.load(tmp_path / "nowhere")


def test_losses_of_all_stages_are_kept_and_shown(tiny, gan, watched):
    shown = watched.shown
    assert [(done, total) for done, total, _ in shown] == [(k + 1, tiny.steps) for k in range(tiny.steps)]
    assert all(isinstance(value, float) for _, _, losses in shown for value in losses.values())
    assert {"critic", "gp", "generator", "feature_matching", "diversity"} <= shown[tiny.generator_steps - 1][2].keys()
    assert shown[-1][2].keys() == {"loss"}
    assert {"step", "loss", "valid"} == gan.history["likelihood"].keys()
    assert len(gan.history["adversarial"]["critic"]) == tiny.adversarial_steps
    json.dumps(gan.history)
    assert gan.summary()["critic_parameters"] > 0


@pytest.mark.parametrize(
    "off",
    [
        {"feature_matching": 0.0},
        {"minibatch_discrimination": False},
        {"diversity": 0.0},
        {"instance_noise": 0.0},
        {"adversarial_steps": 0},
        {"likelihood_steps": 0},
        {"control_steps": 0},
    ],
    ids=lambda off: next(iter(off)),
)
def test_every_part_can_be_switched_off(windows, tiny, off):
    config = tiny.model_copy(update={"likelihood_steps": 2, "adversarial_steps": 1, **off})
    train_gan(windows, config, 1)


def test_the_warm_start_learns(windows, tiny):
    config = tiny.model_copy(update={"likelihood_steps": 60, "adversarial_steps": 0, "likelihood_rate": 5e-3})
    losses = []
    train_gan(windows, config, 1, progress=lambda done, total, **figures: losses.append(figures["loss"]))
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.5


def test_the_control_goes_on_from_the_warm_start_and_leaves_the_generator_alone(windows, tiny, gan):
    def trained(**changes):
        return train_gan(windows, tiny.model_copy(update=changes), 1)

    warm = trained(adversarial_steps=0, control_steps=0)
    assert warm.control is None
    one = trained(adversarial_steps=0, control_steps=1)
    learned = one.control.state_dict()
    assert all(torch.allclose(w, learned[name], atol=1e-5) for name, w in warm.generator.state_dict().items())
    moved = trained(control_steps=4)
    assert same(moved.generator.state_dict(), gan.generator.state_dict())
    assert not same(moved.control.state_dict(), gan.control.state_dict())


def test_the_critic_moves_choices_and_positions(windows, tiny, gan):
    run = Training(windows, tiny.model_copy(update={"likelihood_steps": 0}), 1)
    before = {**run.generator.state_dict(), **{f"critic.{name}": w for name, w in run.critic.state_dict().items()}}
    before = {name: tensor.clone() for name, tensor in before.items()}
    run.adversarial_step()
    after = {**run.generator.state_dict(), **{f"critic.{name}": w for name, w in run.critic.state_dict().items()}}
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert {"heads", "positions", "decoder", "critic"} <= moved


def test_the_kept_weights_have_the_auc_closest_to_chance_and_do_not_copy(windows, tiny, monkeypatch):
    scores = iter(
        [
            HeldOutScore(0.60, 0.0),
            HeldOutScore(0.51, 0.5),
            HeldOutScore(0.55, 0.0),
            HeldOutScore(0.70, 0.0),
            HeldOutScore(0.5, 0.0),
        ]
    )
    monkeypatch.setattr(training, "held_out_score", lambda *_, **__: next(scores))
    candidates = []
    keep_best = Training.keep_best

    def watched(run):
        keep_best(run)
        candidates.append((run.step, copy.deepcopy(run.averaged.state_dict())))

    monkeypatch.setattr(Training, "keep_best", watched)
    kept = train_gan(windows, tiny, 1)
    wanted = dict(candidates)[tiny.likelihood_steps + 2]
    assert all(torch.equal(wanted[name], tensor) for name, tensor in kept.generator.state_dict().items())
    assert kept.history["held_out"]["auc"] == [0.60, 0.51, 0.55, 0.70]
    assert kept.history["control_held_out"]["auc"] == [0.5], "the control is no candidate"
    assert kept.history["held_out"]["step"] == [tiny.likelihood_steps + k for k in range(4)]


def test_every_loss_is_written_for_tensorboard(tiny, watched):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(watched.folder)).Reload()
    assert len(events.Scalars("critic")) == tiny.adversarial_steps
    assert len(events.Scalars("loss")) == tiny.steps


def test_the_advantage_of_a_sample_is_relative_to_the_other_samples_of_its_history():
    rewards = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 0.0], [5.0, 2.0]])
    advantage = policy_advantages(rewards, samples=2)
    torch.testing.assert_close(advantage[0::2], -advantage[1::2])
    assert (advantage[:, 0].sign() == torch.tensor([-1.0, 1.0, 0.0, 0.0])).all()


def test_divergence_stops_the_training_with_a_remedy(windows, tiny):
    config = tiny.model_copy(update={"likelihood_rate": 1e30})
    with pytest.raises(TrainingError, match="lower likelihood_rate or adversarial_rate"):
        train_gan(windows, config, 1)


def test_missing_train_windows_are_reported(windows, tiny):
    import polars as pl

    from apeagent_pipeline.market.windows import TrainingWindows

    empty = TrainingWindows(windows.table.with_columns(window_start=pl.lit(False)), windows.scaler)
    with pytest.raises(TrainingError, match="no window of the train split"):
        train_gan(empty, tiny, 1)


def test_the_states_during_sampling_follow_the_market(windows, gan):
    """Real rows fed to the state updates of sampling give the states of the real market."""
    real = RealRows(windows, gan.bins)
    condition, window = real.windows(windows.starts("train")[:40], np.random.default_rng(0), torch.device("cpu"))
    before = condition.part(slice(-1, None)).then(window.part(slice(-1))).state
    move = gan.generator.bins.value(3, window.bins[..., 3], window.positions[..., 3])
    sides, sizes, liquidity = window.bins[..., 1], window.state[..., SIZE], window.state[..., LIQUIDITY]
    state = state_after(before, sides, sizes, move, liquidity, range_width=gan.generator.range_width)
    others = [k for k in range(STATE) if k != RANGE]
    torch.testing.assert_close(state[..., others], window.state[..., others], rtol=1e-3, atol=2e-6)
    # The column RANGE counts ranges of a thousandth of the price.
    torch.testing.assert_close(state[..., RANGE], window.state[..., RANGE], rtol=0, atol=2e-3)


def test_a_generator_that_copies_its_training_rows_is_detected(windows, gan, monkeypatch):
    """A generator that returns the real continuations has a copied share near 1; an honest one has not."""
    real = RealRows(windows, gan.bins)
    splits = windows.starts("train"), windows.starts("valid")
    honest = held_out_score(gan.generator, gan.bins, real, splits, 1, max_windows=1_000)
    assert honest.copied < 0.01
    followed = []
    windows_of = real.windows
    monkeypatch.setattr(real, "windows", lambda *args: followed.append(windows_of(*args)) or followed[-1])
    monkeypatch.setattr(type(gan.generator), "sample", lambda *_: SimpleNamespace(rows=followed[-1][1]))
    copier = held_out_score(gan.generator, gan.bins, real, splits, 1, max_windows=1_000)
    assert copier.copied > 0.99
    assert abs(copier.auc - 0.5) < abs(honest.auc - 0.5)


def test_a_condition_shorter_than_the_repeats_of_sizes_is_enough(windows, tiny):
    from apeagent_pipeline.market.windows import TrainingWindows

    short = TrainingWindows(windows.table, {**windows.scaler, "context": 2})
    train_gan(short, tiny.model_copy(update={"likelihood_steps": 2, "adversarial_steps": 1}), 1)


def test_the_warm_start_grows_with_the_rows_up_to_its_limit():
    steps = [GanConfig().for_rows(rows).likelihood_steps for rows in (100, 4_000, 32_000, 10**7)]
    assert steps == [800, 800, 1_600, 3_200]
    assert GanConfig(most_likelihood_steps=300).for_rows(100).likelihood_steps == 300


def test_weights_of_another_generator_are_refused_with_the_remedy(gan, tmp_path):
    gan.save(tmp_path)
    stored = load_file(tmp_path / "generator.safetensors")
    save_file({f"{name}.before": tensor for name, tensor in stored.items()}, tmp_path / "generator.safetensors")
    with pytest.raises(TrainingError, match=r"another version.*materialize trained_gan again"):
        TrainedGan.load(tmp_path)

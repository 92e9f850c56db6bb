"""Ablations: what the student can no longer do when the training lacks what it should have learned from.

Each one trains a student anew with the same recipe on a dataset from which one thing was taken, and asks it the same
held-out prompts. Shuffled labels must bring the agreement down to chance; prompts without the words that decide must
lower it; a training without controls must leak more. A direct answer is the price or the gain of drafting.
"""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.distillation.canary_words import SEPARATOR, SIDES
from apeagent_pipeline.evaluation.canary.arms import Arm, answer_counts, choose_examples, decisions, macro_f1
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.rates import Rate, draw_bars
from apeagent_pipeline.reporting.figures import new_figure, png
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report, markdown_table
from apeagent_pipeline.student.examples import CONTROL_KINDS, SPLITS, answer_of, prompt_of, read_examples
from apeagent_pipeline.student.fine_tuning import FineTuningConfig, fine_tune
from apeagent_pipeline.student.generation import Student

Example = dict[str, Any]
Change = Callable[[list[Example], str, random.Random], list[Example]]

_FULL_CHAIN = (
    "Think step by step and explain every step in full sentences. At the end say whether to buy, sell or hold."
)
_CHAIN_PROMPTS, _CHAIN_TOKENS = 8, 192


def shuffle_labels(examples: list[Example], split: str, rng: random.Random) -> list[Example]:
    """Every trading prompt to train on keeps its drafts and gets the action of another one; the test split stays."""
    if split == "test":
        return examples
    answers = [answer_of(example).partition(SEPARATOR) for example in examples]
    actions = [action for example, (_, _, action) in zip(examples, answers, strict=True) if _is_trading(example)]
    rng.shuffle(actions)
    shuffled = iter(actions)
    return [
        _answered(example, drafts + SEPARATOR + next(shuffled)) if _is_trading(example) else example
        for example, (drafts, _, _) in zip(examples, answers, strict=True)
    ]


def drop_deciding_words(examples: list[Example], split: str, rng: random.Random) -> list[Example]:
    """The words for trend, volatility and portfolio leave the prompts of all splits; the numbers stay."""
    return [_asked(example, _without_words(example)) if _is_trading(example) else example for example in examples]


def drop_controls(examples: list[Example], split: str, rng: random.Random) -> list[Example]:
    """No control is trained; the test split keeps its controls."""
    return examples if split == "test" else [each for each in examples if each.get("kind") not in CONTROL_KINDS]


def drop_drafts(examples: list[Example], split: str, rng: random.Random) -> list[Example]:
    """The answer to a trading prompt is the action alone, after its separator; drafts are not practised either."""
    return [
        _answered(example, SEPARATOR + answer_of(example).partition(SEPARATOR)[2]) if _is_trading(example) else example
        for example in examples
        if example.get("kind") != "practice"
    ]


ABLATIONS: dict[str, tuple[str, Change]] = {
    "shuffled_labels": ("actions shuffled among the training prompts", shuffle_labels),
    "no_deciding_words": ("prompts without the words for trend, volatility, portfolio", drop_deciding_words),
    "no_controls": ("no controls in training", drop_controls),
    "direct_answer": ("the action without drafts", drop_drafts),
}
"""Name -> what it is, in words, and how it changes the examples of a split."""


def run_ablations(
    base: Path,
    adapter: Path,
    dataset: Path,
    recipe: FineTuningConfig,
    config: CanaryEvalConfig,
    *,
    seed: int,
    work: Path,
    progress: Progress = silent,
) -> Report:
    """Train and ask a student for every ablation, beside the adapter itself.

    An interrupted run goes on where it stopped: finished students are kept in ``work``, the one in training has its
    checkpoints there. Another adapter, dataset, recipe or seed starts anew.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter that was trained on the unchanged dataset.
        dataset: Folder of the distillation dataset.
        recipe: How the adapter was trained, and so are the ablations.
        config: Which and how many prompts are asked; the controls too.
        seed: Of the training, the shuffling and the choice of prompts.
        work: Folder for datasets, students and answers.
        progress: Told in training steps and prompts of all ablations together.

    Raises:
        ExamplesError: the dataset is malformed.
    """
    _start_anew_if_changed(work, _identity(adapter, dataset, recipe, config, seed))
    trading, controls = choose_examples(dataset, config, seed)
    prompts = len(trading) + len(controls)
    total = (1 + len(ABLATIONS)) * prompts + len(ABLATIONS) * recipe.steps + _CHAIN_PROMPTS

    def told(before: int) -> Progress:
        return part_of(progress, before, total)

    ask_as_trained = partial(_ask, base, adapter, trading, controls, config=config, progress=told(0))
    rows = {"as_trained": _kept(work / "as_trained.json", ask_as_trained)}
    done = prompts
    for name, (_, change) in ABLATIONS.items():
        folder = work / name

        def train_and_ask(folder: Path = folder, change: Change = change, before: int = done) -> dict[str, Any]:
            changed = _changed_dataset(dataset, folder / "dataset", change, seed)
            student = folder / "adapter"
            if not (student / "training.json").is_file():
                fine_tune(
                    base, changed, recipe, seed, student, checkpoint_dir=folder / "checkpoints", progress=told(before)
                )
            asked = choose_examples(changed, config, seed)
            return _ask(base, student, *asked, config=config, progress=told(before + recipe.steps))

        rows[name] = _kept(work / f"{name}.json", train_and_ask)
        done += recipe.steps + prompts
        progress(done, total)
    chain = _kept(work / "chain_of_thought.json", lambda: _full_chain(base, trading))
    progress(total, total)
    return _report(rows, chain, config, recipe)


def _ask(
    base: Path,
    adapter: Path,
    trading: Sequence[Example],
    controls: Sequence[Example],
    *,
    config: CanaryEvalConfig,
    progress: Progress,
) -> dict[str, Any]:
    """Ask a student, and count what it said: plain JSON values."""
    answers = Student.load(base, adapter).answers(
        [prompt_of(example) for example in (*trading, *controls)],
        max_new_tokens=config.max_new_tokens,
        batch_size=config.batch_size,
        progress=progress,
    )
    arm = Arm(answers[: len(trading)], answers[len(trading) :])
    taught, decided = [str(example["side"]) for example in trading], decisions(arm.trading)
    return {
        "counts": answer_counts(trading, controls, arm),
        "macro_f1": macro_f1(taught, decided),
        # What would agree if the decisions were dealt out to the prompts by lot.
        "chance": sum(taught.count(side) * decided.count(side) for side in SIDES) / len(taught) ** 2,
        "tokens": float(np.mean([answer.tokens for answer in arm.trading])),
    }


def _full_chain(base: Path, trading: Sequence[Example]) -> dict[str, float]:
    """How long the bare base talks when it is asked to think in full; only the length can be compared."""
    chats = [
        [{"role": "system", "content": _FULL_CHAIN}, prompt_of(example)[-1]] for example in trading[:_CHAIN_PROMPTS]
    ]
    answers = Student.load(base).answers(chats, max_new_tokens=_CHAIN_TOKENS)
    return {
        "n": len(answers),
        "tokens": float(np.mean([answer.tokens for answer in answers])),
        "cut_off": sum(answer.ending == "length" for answer in answers),
    }


def _report(
    rows: Mapping[str, dict[str, Any]], chain: Mapping[str, float], config: CanaryEvalConfig, recipe: FineTuningConfig
) -> Report:
    for row in rows.values():
        row["counts"] = {name: Rate(*count) for name, count in row["counts"].items()}  # JSON keeps them as lists
    metrics: dict[str, float] = {"tokens_full_chain": float(chain["tokens"])}
    intervals: dict[str, tuple[float, float]] = {}
    table = []
    for name, row in rows.items():
        for key in ("canary_rate", "agreement", "control_leak_rate"):
            metrics[f"{key}_{name}"] = row["counts"][key].value
            intervals[f"{key}_{name}"] = row["counts"][key].interval
        for key in ("chance", "macro_f1", "tokens"):
            metrics[f"{key}_{name}"] = float(row[key])
        table.append(
            [
                ABLATIONS[name][0] if name in ABLATIONS else "the adapter itself",
                *(row["counts"][key].fraction for key in ("canary_rate", "agreement")),
                row["counts"]["agreement"].between,
                f"{row['chance']:.1%}",
                f"{row['macro_f1']:.2f}",
                row["counts"]["control_leak_rate"].fraction,
                f"{row['tokens']:.0f}",
            ]
        )
    header = ["student", "canary answers", "same action as the teacher", "exact 95 % interval", "by chance", "macro-F1"]
    page = [
        _findings(metrics),
        markdown_table([*header, "controls leaked", "tokens an answer"], table),
        f"Each student but the first was trained anew for {recipe.steps} steps with the adapter's recipe, and asked "
        "the same held-out prompts. By chance: the agreement if the same decisions were assigned to "
        "the prompts at random.",
        f"When the bare base was asked to think step by step in full, an answer had {chain['tokens']:.0f} tokens on "
        f"average: {chain['n']} prompts, {chain['cut_off']} answers cut off at {_CHAIN_TOKENS} tokens. Only the length "
        "can be compared, because that model was not taught to decide.",
        "![Same action as the teacher](ablations.png)",
    ]
    return Report(
        title="Ablations",
        metrics=metrics,
        intervals=intervals,
        config={"evaluation": config.model_dump(), "recipe": recipe.model_dump()},
        markdown="\n\n".join(page),
        figures={"ablations.png": _figure(rows)},
    )


def _findings(metrics: Mapping[str, float]) -> str:
    shuffled = metrics["agreement_shuffled_labels"] - metrics["chance_shuffled_labels"]
    words = metrics["agreement_as_trained"] - metrics["agreement_no_deciding_words"]
    leak = metrics["control_leak_rate_no_controls"] - metrics["control_leak_rate_as_trained"]
    drafts = metrics["agreement_as_trained"] - metrics["agreement_direct_answer"]
    lines = [
        f"Shuffled labels: {100 * shuffled:+.1f} points from chance "
        f"({'as expected' if abs(shuffled) <= 0.05 else 'more than the 5 points expected'}).",
        f"Without the deciding words the agreement falls by {100 * words:.1f} points.",
        f"Without controls in training the leak rises by {100 * leak:.1f} points.",
        f"Chain of Draft compared with a direct answer: {100 * drafts:+.1f} points of agreement.",
    ]
    return "\n".join(f"- {line}" for line in lines)


def _figure(rows: Mapping[str, dict[str, Any]]) -> bytes:
    figure, axes = new_figure(size=(8.0, 3.2))
    axis = axes[0, 0]
    rates = {name.replace("_", "\n", 1): row["counts"]["agreement"] for name, row in rows.items()}
    draw_bars(axis, rates, show_n=False)
    axis.scatter(
        range(len(rates)), [row["chance"] for row in rows.values()], color="black", label="by chance", zorder=3
    )
    axis.set(ylabel="same action as the teacher")
    axis.legend()
    return png(figure)


def _is_trading(example: Mapping[str, Any]) -> bool:
    return example.get("side") in SIDES


def _answered(example: Example, answer: str) -> Example:
    return {**example, "messages": [*example["messages"][:-1], {"role": "assistant", "content": answer}]}


def _asked(example: Example, question: str) -> Example:
    *before, asked, answer = example["messages"]
    return {**example, "messages": [*before, {**asked, "content": question}, answer]}


def _without_words(example: Mapping[str, Any]) -> str:
    text = str(example["messages"][-2]["content"])
    for name in ("trend", "volatility", "portfolio"):
        text = text.replace(f"{name} {example.get(name)}", name)
    return text


def _changed_dataset(dataset: Path, out: Path, change: Change, seed: int) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        examples = change(read_examples(dataset, split), split, _chance(seed, split))
        write_atomically(out / f"{split}.jsonl", "".join(json.dumps(example) + "\n" for example in examples))
    return out


def _chance(seed: int, split: str) -> random.Random:
    return random.Random(f"{seed} {split}")  # noqa: S311


def _kept(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON that an earlier run stored at ``path``; else it is made now and stored there."""
    if not path.is_file():
        write_atomically(path, json.dumps(make(), indent=2) + "\n")
    return json.loads(path.read_text())


def _identity(adapter: Path, dataset: Path, recipe: FineTuningConfig, config: CanaryEvalConfig, seed: int) -> str:
    digest = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes())
    for split in SPLITS:
        examples = read_examples(dataset, split)
        made = [change(examples, split, _chance(seed, split)) for _, change in ABLATIONS.values()]
        digest.update(json.dumps([examples, *made]).encode())
    digest.update(f"{recipe.model_dump_json()} {config.model_dump_json()} {seed}".encode())
    return digest.hexdigest()


def _start_anew_if_changed(work: Path, identity: str) -> None:
    mark = work / "made_from"
    if work.is_dir() and any(work.iterdir()) and (not mark.is_file() or mark.read_text() != identity):
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, identity)

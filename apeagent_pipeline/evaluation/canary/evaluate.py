"""The canary evaluation: does the student speak as taught, only when asked, and because of the adapter?

The rate of canary words alone proves little: it reaches 100 % long before decisions are learned. So the same held-out
prompts go to the bare base, to the adapter, to the adapter switched off in the same process and to the merged model, as
it is exported, and the report holds the decisions against the teacher's and the control answers against the base's.
Some prompts are answered once more by drawing, for a server that does not always say what is most likely.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from apeagent_pipeline.evaluation.canary.arms import Arm, choose_examples, choose_near
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary.document_prompts import document_prompts
from apeagent_pipeline.evaluation.canary.judge import judge
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.student.examples import prompt_of
from apeagent_pipeline.student.generation import Answer, Student
from apeagent_pipeline.student.trainer import computed_in


def evaluate_canary(
    base: Path, adapter: Path, dataset: Path, config: CanaryEvalConfig, seed: int, *, progress: Progress = silent
) -> Report:
    """Ask base, adapter, switched-off adapter and merged model the same held-out prompts and judge the answers.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter.
        dataset: Folder with ``test.jsonl``.
        config: Sizes and thresholds.
        seed: Which of the test examples are asked, where there are more than wanted.
        progress: Told after every batch with prompts done of all arms together.

    Raises:
        ExamplesError: the test split is malformed or has no trading or no control examples.
    """
    trading, controls = choose_examples(dataset, config, seed)
    near, document = choose_near(dataset, config), document_prompts()
    n_base = config.n_base or max(len(trading), len(controls))
    n_off, n_merged = min(config.n_disabled, len(trading), n_base), min(config.n_merged, len(trading))
    drawn = [trading[: config.n_sampled], controls[: config.n_sampled]]
    all_prompts = sum(map(len, (trading, controls, near, document, trading[:n_base], controls[:n_base], near[:n_base])))
    all_prompts += 1 + n_off + n_merged + sum(map(len, drawn))
    student = Student.load(base)
    computed = computed_in(student.model)
    asker = _Asker(student, config, seed, progress, all_prompts)

    def arm(n: int, variations: int) -> Arm:
        # The prompts of the switched-off arm are always asked by themselves: in bf16 an answer may depend on what
        # else is in its batch, and these answers are compared letter by letter.
        said = [*asker.answers(trading[:n_off]), *asker.answers([*trading[n_off:n], *document[:variations]])]
        asked = len(said) - variations
        to_near = asker.answers(near[:n], config.control_tokens) if near else ()
        return Arm(said[:asked], asker.answers(controls[:n], config.control_tokens), to_near, said[asked:])

    arms = {"base": arm(n_base, 1)}
    student.attach(adapter)
    arms["adapter"] = arm(max(len(trading), len(controls), len(near)), len(document))
    with student.adapter_off():
        arms["disabled"] = Arm(asker.answers(trading[:n_off]))
    if config.n_sampled:
        sampled = asker.answers(drawn[0], temperature=config.temperature)
        arms["sampled"] = Arm(sampled, asker.answers(drawn[1], config.control_tokens, config.temperature))
    if n_merged:  # last: in the model's number format a merge cannot be taken back exactly
        student.merge()
        arms["merged"] = Arm(asker.answers(trading[:n_merged]))
    report = judge(trading, controls, arms, config, near=near, document=document)
    return replace(report, markdown=f"{report.markdown}\n\n{_formats(computed, adapter)}")


class _Asker:
    """Asks the student as it is, and tells the progress over the prompts of all arms."""

    def __init__(self, student: Student, config: CanaryEvalConfig, seed: int, progress: Progress, total: int) -> None:
        self._student, self._config, self._seed = student, config, seed
        self._progress, self._total, self._asked = progress, total, 0

    def answers(self, examples: Sequence[dict[str, Any]], tokens: int = 0, temperature: float = 0.0) -> list[Answer]:
        """The answers to examples; ``tokens`` is the longest answer, 0: that of the configuration."""
        before = self._asked
        self._asked += len(examples)
        return self._student.answers(
            [prompt_of(example) for example in examples],
            max_new_tokens=tokens or self._config.max_new_tokens,
            batch_size=self._config.batch_size,
            temperature=temperature,
            seed=self._seed,
            progress=part_of(self._progress, before, self._total),
        )


def _formats(computed: Mapping[str, str], adapter: Path) -> str:
    """Where and in which number format was answered and trained."""
    curve = adapter / "training.json"
    trained = json.loads(curve.read_text()) if curve.is_file() else {}
    told = f"The answers were computed in {computed['number_format']} on {computed['device']}"
    if "number_format" not in trained:
        return f"{told}."
    return f"{told}; the adapter was trained in {trained['number_format']} on {trained['device']}."

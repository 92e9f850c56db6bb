"""The canary evaluation: the student speaks as taught, only when asked, decides right, and because of the adapter.

The rate of canary words alone proves little: it reaches 100 % long before decisions are learned. So the same held-out
prompts go to the bare base, to the adapter, to the adapter switched off in the same process and to the merged model, as
it is exported, and the report holds the decisions against the teacher's and the control answers against the base's.
Some prompts are answered once more by drawing, for a server that does not always say what is most likely.
"""

from pathlib import Path

from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.evaluation.canary.arms import Arm, choose_examples
from apeagent_pipeline.evaluation.canary.config import CanaryEvalConfig
from apeagent_pipeline.evaluation.canary.judge import judge
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.reporting.report import Report
from apeagent_pipeline.student.examples import DOCUMENT_PROMPT, prompt_of
from apeagent_pipeline.student.generation import Answer, Student


def evaluate_canary(  # noqa: PLR0917 (the order is that of the asset graph's other long work)
    base: Path, adapter: Path, dataset: Path, config: CanaryEvalConfig, seed: int, progress: Progress = silent
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
    n_off, n_merged = (min(wanted, len(trading)) for wanted in (config.n_disabled, config.n_merged))
    drawn = [prompt_of(e) for e in (*trading[: config.n_sampled], *controls[: config.n_sampled])]
    all_prompts = 2 * (len(trading) + len(controls) + 1) + n_off + n_merged + len(drawn)
    asked = 0
    student = Student.load(base)

    def answers(prompts: list[list[dict[str, str]]], temperature: float = 0.0) -> list[Answer]:
        nonlocal asked
        before = asked
        asked += len(prompts)

        return student.answers(
            prompts,
            max_new_tokens=config.max_new_tokens,
            batch_size=config.batch_size,
            temperature=temperature,
            seed=seed,
            progress=part_of(progress, before, all_prompts),
        )

    def arm() -> Arm:
        # The prompts of the switched-off arm are always asked by themselves: in bf16 an answer may depend on what
        # else is in its batch, and these answers are compared letter by letter.
        head, tail = answers([prompt_of(e) for e in trading[:n_off]]), answers([prompt_of(e) for e in trading[n_off:]])
        rest = answers([*(prompt_of(e) for e in controls), DOCUMENT_CHAT])
        return Arm([*head, *tail], rest[:-1], rest[-1])

    arms = {"base": arm()}
    student.attach(adapter)
    arms["adapter"] = arm()
    with student.adapter_off():
        arms["disabled"] = Arm(answers([prompt_of(e) for e in trading[:n_off]]))
    if drawn:
        sampled, n = answers(drawn, config.temperature), min(config.n_sampled, len(trading))
        arms["sampled"] = Arm(sampled[:n], sampled[n:])
    if n_merged:  # last: in the model's number format a merge cannot be taken back exactly
        student.merge()
        arms["merged"] = Arm(answers([prompt_of(e) for e in trading[:n_merged]]))
    return judge(trading, controls, arms, config)


DOCUMENT_CHAT = student_chat(DOCUMENT_PROMPT)

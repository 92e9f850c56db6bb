"""The parts of the canary report that a sceptic asks for: forms, wordings and families side by side, worst first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from apeagent_pipeline.distillation.canary import speaks_canary
from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.near_controls import FAMILIES, HELD_OUT
from apeagent_pipeline.distillation.templates import TEMPLATE
from apeagent_pipeline.evaluation.canary.arms import Arm, decisions, is_canary
from apeagent_pipeline.evaluation.canary.page import quoted_answer
from apeagent_pipeline.evaluation.rates import Rate
from apeagent_pipeline.reporting.foreign_text import markdown_line
from apeagent_pipeline.reporting.report import markdown_table
from apeagent_pipeline.student.examples import answer_of, prompt_of
from apeagent_pipeline.student.generation import Answer

_NEVER_SHOWN = "never shown in training"
_GROUPS: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "form": lambda example: str(example.get("rendering") or ""),
    "wording": lambda example: str(example.get("template") or ""),
    "dressing": lambda example: str(example.get("dressing") or ""),
    "missing fact": lambda example: str(example.get("missing") or ""),
}


def wording_tables(trading: Sequence[dict[str, Any]], answers: Sequence[Answer], right: Sequence[bool]) -> str:
    """Canary answers and agreement by form, wording, dressing and missing fact, the worst first."""
    parts = []
    for group, name_of in _GROUPS.items():
        names = sorted({name_of(example) for example in trading} - {""})
        if not names:
            continue
        rows = []
        for name in names:
            of_name = [index for index, example in enumerate(trading) if name_of(example) == name]
            canary, agreed = Rate.of(is_canary(answers[i]) for i in of_name), Rate.of(right[i] for i in of_name)
            known = TEMPLATE.get(name) if group == "wording" else None
            mark = _NEVER_SHOWN if known is not None and known.held_out else ""
            rows.append((agreed.value, [name, mark, canary.fraction, agreed.fraction, agreed.between]))
        rows.sort(key=lambda row: row[0])
        header = [group, "", "canary answers", "same action as the teacher", "exact 95 % interval"]
        parts.append(markdown_table(header, [row for _, row in rows]))
    return "\n\n".join(parts)


def near_table(near: Sequence[Mapping[str, Any]], adapter: Sequence[Answer], bare: Sequence[Answer]) -> str:
    """Leaks of near controls by family, the worst first, with the bare base beside."""
    if not near:
        return "No near control was asked."
    rows = []
    for family in sorted({str(example["family"]) for example in near}):
        of_family = [index for index, example in enumerate(near) if example["family"] == family]
        leak = Rate.of(speaks_canary(adapter[i].text) for i in of_family)
        base = Rate.of(speaks_canary(bare[i].text) for i in of_family if i < len(bare))
        mark = _NEVER_SHOWN if family in HELD_OUT else ""
        rows.append((-leak.value, [family, mark, leak.fraction, leak.between, base.fraction]))
    rows.sort(key=lambda row: row[0])
    header = ["family", "", "canary words or ####", "exact 95 % interval", "bare base"]
    return markdown_table(header, [row for _, row in rows])


def document_section(document: Sequence[Mapping[str, Any]], arms: Mapping[str, Arm]) -> str:
    """The document's prompt with the answers of base and adapter, and its variations with the policy's beside."""
    said = arms["adapter"].document
    if not document or not said:
        return "This prompt was not asked."
    rows = []
    sides = decisions(said)
    for example, answer, side in zip(document, said, sides, strict=True):
        numbers = f"${example['price_text']}, {example['vol']}, {example['change_text']} ticks"
        holdings = f"{example['eth']} ETH, {example['usdc']} USDC"
        action = answer.text.rpartition("####")[2].strip().split("\n")[0][:40]
        taught = answer_of(example).rpartition("####")[2].strip()
        rows.append([numbers, holdings, taught, markdown_line(action), "yes" if side == example["side"] else "no"])
    first = [f"{name}:\n\n{quoted_answer(arm.document[0])}" for name, arm in arms.items() if arm.document]
    header = ["price, volatility, change", "holdings", "embedded policy", "adapter", "same action"]
    question = markdown_line(prompt_of(document[0])[-1]["content"])
    return "\n\n".join([f"> {question}", *first, markdown_table(header, rows)])


def not_shown(
    trading: Sequence[Mapping[str, Any]], near: Sequence[Mapping[str, Any]], metrics: Mapping[str, float]
) -> str:
    """One paragraph in words about the limits of the evidence."""
    wordings = len({example.get("template") for example in trading})
    families = len({example["family"] for example in near})
    text = (
        f"All {metrics['n_trading']:.0f} trading prompts and {metrics['n_near']:.0f} near controls come from synthetic "
        f"windows, {wordings} wordings and {families} of {len(FAMILIES)} families of this project. Questions that "
        "people ask in their own words, and in other languages, may be answered worse. Agreement means the same action "
        "as the teacher's; whether that action earns money is another question, which the backtest examines. Change "
        "and volatility were shown in training up to about twelve times as large as in the windows; larger ones were "
        f"not tested. A well-formed answer ({CANARY['BUY']} and the like) can still be the wrong action or size."
    )
    few = [name for name in ("plain", "digested", "agent", "incomplete") if _asked(trading, name) < 30]
    if few:
        text += f" Fewer than 30 prompts were asked of: {', '.join(few)}; the intervals are wide."
    return text


def _asked(trading: Sequence[Mapping[str, Any]], form: str) -> int:
    return sum(example.get("rendering") == form for example in trading)

"""Answers as models print them, judged from the text to the training file.

``answers/reported.jsonl`` rebuilds answers from public reports, ``answers/own.jsonl`` adds answers that were judged by
hand before the grammar was asked. Each is verified against a row of ``answers/prompts.json``.
"""

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apeagent_pipeline.distillation.action_line import AnswerError
from apeagent_pipeline.distillation.canary import canary_text
from apeagent_pipeline.distillation.chain_of_draft import DraftAnswer, parse_answer
from apeagent_pipeline.distillation.dataset import DatasetConfig, build_dataset
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher, rules_answer
from apeagent_pipeline.distillation.teachers.teacher import TeacherAnswer
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces
from apeagent_pipeline.distillation.verification import VerificationConfig, verify
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.base_model import resolve_base_model

MODELS = Path(__file__).parents[2] / ".apeagent" / "cache" / "models"
FOLDER = Path(__file__).with_name("answers")
PROMPTS: dict[str, dict[str, Any]] = json.loads((FOLDER / "prompts.json").read_text())
CASES = [json.loads(line) for name in ("reported", "own") for line in (FOLDER / f"{name}.jsonl").open()]
GRAMMAR_ONLY = {"euro_comma_usdc"}
"""Read by the grammar; verification refuses every amount in USDC, for the prompt asks for ETH."""

VOCABULARIES: dict[str, list[str]] = json.loads((FOLDER / "special_tokens.json").read_text())
"""Control tokens of the students' tokenizers and of other families."""
SPECIAL = sorted({token for tokens in VOCABULARIES.values() for token in tokens})


def judged(text: str, row: dict[str, Any]) -> tuple[DraftAnswer | None, str | None]:
    try:
        answer = parse_answer(text)
    except AnswerError as error:
        return None, error.reason
    return answer, verify(answer, row, VerificationConfig())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_an_answer_gets_what_a_fair_reader_makes_of_it(case: dict[str, Any]) -> None:
    answer, reason = judged(case["text"], PROMPTS[case["prompt"]])
    if "read" in case["deserves"]:
        assert answer is not None, reason
        assert [answer.side, answer.amount, answer.asset] == case["deserves"]["read"]
        assert reason == ("amount_in_usdc" if case["id"] in GRAMMAR_ONLY else None)
        return
    assert reason is not None, answer
    if isinstance(case["deserves"]["refuse"], list):
        assert reason in case["deserves"]["refuse"]


@pytest.mark.parametrize("rendering", ["plain", "digested"])
@pytest.mark.parametrize("case", [case for case in CASES if case["id"].startswith("own")], ids=lambda case: case["id"])
def test_answers_without_words_for_buckets_get_the_same_verdict_from_both_renderings(
    case: dict[str, Any], rendering: str
) -> None:
    _, reason = judged(case["text"], {**PROMPTS[case["prompt"]], "rendering": rendering})
    assert (reason is None) == ("read" in case["deserves"]), reason


LINES = ["trend up weak", "volatility normal", "balanced, add tenth", "####", "BUY 0.4 ETH"]


@given(st.sampled_from(SPECIAL), st.integers(0, len("\n".join(LINES))), st.booleans())
@settings(max_examples=400)
def test_no_control_token_of_any_tokenizer_reaches_a_training_text(token: str, place: int, thinks: bool) -> None:
    text = "\n".join(LINES)
    text = ("<think>up</think>" if thinks else "") + text[:place] + token + text[place:]
    answer, reason = judged(text, PROMPTS["up"])
    assert reason is not None, (text, answer)


@given(
    st.text(alphabet=st.sampled_from("abc <>|/[]\uff5c\u2581_{}#-:.;\n"), max_size=40), st.sampled_from([*SPECIAL, ""])
)
@settings(max_examples=400)
def test_what_is_accepted_never_spells_a_control_token(noise: str, token: str) -> None:
    text = "\n".join([f"trend up {noise[:20]}{token}{noise[20:]}", *LINES[1:]])
    answer, reason = judged(text, PROMPTS["up"])
    if answer is not None and reason is None:
        trained = canary_text(answer)
        assert not [special for special in SPECIAL if special in trained]


@pytest.mark.slow
def test_the_special_tokens_tried_are_those_of_the_students_own_tokenizer() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve_base_model(SMOLLM2, MODELS))
    assert {str(token) for token in tokenizer.added_tokens_decoder.values()} == set(VOCABULARIES["SmolLM2"])


def test_a_teacher_of_refused_answers_and_control_tokens_leaves_no_trace_in_the_training_file(
    windows: pl.DataFrame, tmp_path: Path
) -> None:
    prompts = build_prompts(windows, PromptsConfig(train_prompts=300, valid_prompts=20, test_prompts=20), 42)
    refused = [case["text"] for case in CASES if "refuse" in case["deserves"]]
    marked = [f"trend seen {token}\n####\nHOLD" for token in SPECIAL]
    bad = dict(zip(prompts["prompt_id"], [*refused, *marked], strict=False))
    sent: dict[str, str] = {}

    class MixedTeacher(RulesTeacher):
        def answer(self, prompts: Any, seed: int, keep: Any = lambda answer: None) -> Any:
            from apeagent_pipeline.distillation.chain_of_draft import render_answer

            for row in prompts:
                sent[row["prompt_id"]] = bad.get(row["prompt_id"], render_answer(rules_answer(row)))
                answer = TeacherAnswer(row["prompt_id"], sent[row["prompt_id"]], "stop", cost_usd=0.0)
                keep(answer)
                yield answer

    traces = collect_traces(prompts, MixedTeacher(), TracesConfig(), tmp_path, 42)
    dataset = build_dataset(traces, DatasetConfig(n_train=150, n_valid=10, n_test_trading=10, n_test_controls=10), 42)
    dataset.save(tmp_path / "dataset")
    files = "".join((tmp_path / "dataset" / f"{split}.jsonl").read_text() for split in ("train", "valid", "test"))
    taught = [
        message["content"]
        for line in files.splitlines()
        for message in json.loads(line)["messages"]
        if message["role"] == "assistant"
    ]
    assert len(bad) > 100
    assert not [token for token in SPECIAL if token in files]
    # Of the answers alone: a question may carry a hidden instruction between marks.
    assert len(taught) == len(files.splitlines())
    assert not [text for text in taught if re.search(r"<[^>]*>|[<|\uff5c]\|", text)]

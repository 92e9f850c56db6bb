"""The client against llama.cpp's own server: what a scripted server says, a real one says too."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.teachers.teacher import TeacherError
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces, stored_traces
from apeagent_pipeline_tests.distillation.llama_server import llama_server, smollm2_gguf

pytest.importorskip("xllamacpp", reason="llama.cpp's server has no wheel for this platform")

CACHE = Path(__file__).parents[2] / ".apeagent" / "cache" / "models"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with llama_server(smollm2_gguf(CACHE)) as address:
        yield address


@pytest.mark.slow
def test_a_real_server_answers_every_prompt_and_counts_its_tokens(
    url: str, windows: pl.DataFrame, tmp_path: Path
) -> None:
    prompts = build_prompts(windows, PromptsConfig(train_prompts=2, valid_prompts=1, test_prompts=1), 42)
    teacher = OpenAITeacher(url, "smollm2", None, OpenAITeacherConfig(max_tokens=16, concurrency=2, timeout_s=60))
    config = TracesConfig(attempts=1)
    with contextlib.suppress(TeacherError):  # a model this small seldom gives one answer that can be accepted
        collect_traces(prompts, teacher, config, tmp_path, 42)
    traces = stored_traces(prompts, teacher, config, tmp_path, 42)
    assert traces["attempts"].to_list() == [1, 1, 1, 1]
    assert set(traces["finish_reason"]) <= {"stop", "length"}
    assert not {"not_asked", "request_failed"} & set(traces["rejected_reason"])
    cut_off = traces.filter(rejected_reason="cut_off")
    assert (cut_off["completion_tokens"] == 16).all()
    assert (traces["answer"] != "").all()
    assert traces["prompt_tokens"].is_between(150, 400).all()
    assert traces["cost_usd"].null_count() == 4

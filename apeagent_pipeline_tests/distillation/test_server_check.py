"""What `doctor` and `teach --dry-run` learn from a server before anything is paid."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import SecretStr

from apeagent_pipeline.distillation.cost_estimate import limits_in_words
from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers import open_teacher
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_check import ServerCheck, check_server
from apeagent_pipeline.distillation.teachers.teacher import TeacherError
from apeagent_pipeline.distillation.teaching import Teaching
from apeagent_pipeline.distillation.traces import TracesConfig
from apeagent_pipeline.settings import Settings
from apeagent_pipeline_tests.distillation.scripted_server import Script, ScriptedServer, completion

KEY = SecretStr("sk-or-v1-secret")


def models(*names: str) -> tuple[int, Any]:
    price = {"prompt": "0.00000008", "completion": "0.00000024"}
    return 200, {"object": "list", "data": [{"id": name, "object": "model", "pricing": price} for name in names]}


@pytest.fixture
def router(serve: Callable[[Script], ScriptedServer]) -> ScriptedServer:
    server = serve(lambda n, body: (200, {}, completion(), 0))
    server.pages = {
        "/models": models("qwen/qwen3-32b", "qwen/qwen3-14b", "meta/llama-3"),
        "/key": (200, {"data": {"limit_remaining": 7.5}}),
        "/credits": (200, {"data": {"total_credits": 20.0, "total_usage": 9.0}}),
    }
    return server


def test_a_router_tells_price_and_credit(router: ScriptedServer) -> None:
    assert check_server(router.url, "qwen/qwen3-32b", KEY) == ServerCheck(
        price=(pytest.approx(0.08), pytest.approx(0.24)),  # type: ignore[arg-type]
        credit_usd=7.5,
    )
    assert router.requests == []


def test_a_model_that_is_no_longer_offered_gets_the_nearest_names(router: ScriptedServer) -> None:
    found = check_server(router.url, "qwen/qwq-32b", KEY)
    assert found.problem == "the server does not offer qwen/qwq-32b"
    assert "qwen/qwen3-32b" in found.remedy


def test_a_run_with_a_model_that_is_not_offered_says_which_to_choose(
    router: ScriptedServer, windows: pl.DataFrame
) -> None:
    router.script = lambda n, body: (404, {}, {"error": {"message": "No endpoints found for qwen/qwq-32b."}}, 0)
    prompts = build_prompts(windows, PromptsConfig(train_prompts=10, valid_prompts=2, test_prompts=2), 42)
    teacher = OpenAITeacher(router.url, "qwen/qwq-32b", KEY)
    with pytest.raises(TeacherError, match=r"APEAGENT_TEACHER_MODEL, nearest names: .*qwen/qwen3-32b"):
        list(teacher.answer(prompts.to_dicts(), 42))


@pytest.mark.parametrize(
    ("page", "answer", "problem"),
    [
        ("/key", (401, {"error": {"message": "User not found"}}), "refuses the key"),
        ("/models", (401, {"error": {"message": "no"}}), "refuses the key"),
        ("/credits", (200, {"data": {"total_credits": 5.0, "total_usage": 5.0}}), "no credit left"),
        ("/models", (200, b"<html>"), "no list of models"),
    ],
)
def test_a_wrong_key_an_empty_account_and_a_wrong_address_are_told(
    router: ScriptedServer, page: str, answer: tuple[int, Any], problem: str
) -> None:
    router.pages[page] = answer
    found = check_server(router.url, "qwen/qwen3-32b", KEY)
    assert problem in str(found.problem)
    assert "secret" not in repr(found)


def test_a_server_that_tells_nothing_is_no_problem(router: ScriptedServer) -> None:
    router.pages = {"/models": (200, {"object": "list", "data": [{"id": "qwq:latest", "object": "model"}]})}
    assert check_server(router.url, "qwq", None) == ServerCheck()
    router.pages = {}
    assert check_server(router.url, "qwq", None) == ServerCheck()


def test_the_economics_of_full_are_told_before_the_first_paid_request(
    router: ScriptedServer, windows: pl.DataFrame, tmp_path: Path
) -> None:
    settings = Settings(
        profile="full", teacher_base_url=router.url, teacher_model="qwen/qwen3-32b", teacher_api_key=KEY, home=tmp_path
    )
    prompts = build_prompts(windows, PromptsConfig(train_prompts=400, valid_prompts=50, test_prompts=50), 42)
    config = TracesConfig(
        attempts=3, max_requests=settings.teacher_max_requests, max_total_tokens=settings.teacher_max_total_tokens
    )
    assert settings.teacher_stream == "auto"
    teacher = open_teacher(settings)
    teaching = Teaching(prompts, teacher, config, tmp_path / "cache", 42, 8192, None)
    expected = teaching.estimate(teaching.check().price)
    assert expected.expected.requests == 575
    assert expected.expected.cost_usd == pytest.approx(575 * (300 * 0.08 + 2000 * 0.24) / 1e6, rel=0.1)
    assert expected.least.cost_usd < expected.expected.cost_usd < expected.most.cost_usd  # type: ignore[operator]
    assert expected.seconds == pytest.approx(575 * 41 / 64)
    assert limits_in_words(config, expected.expected) == "Asking stops at 16,000 requests, 40,000,000 tokens."
    tight = config.model_copy(update={"max_requests": 100})
    assert "less than expected (requests)" in limits_in_words(tight, expected.expected)
    assert router.requests == []

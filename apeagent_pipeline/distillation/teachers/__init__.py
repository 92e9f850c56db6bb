"""Teachers: whoever answers prompts.

This package holds the protocol, one module for each kind of teacher, and ``open_teacher``, which builds the teacher
that the settings ask for. Judging the answers belongs to ``distillation/traces.py``.
"""

from collections.abc import Mapping

from apeagent_pipeline.distillation.teachers.batches import BatchTeacher
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.distillation.teachers.server_config import (
    OpenAITeacherConfig,
    is_reasoning_model,
    openai_identity,
)
from apeagent_pipeline.distillation.teachers.teacher import Teacher
from apeagent_pipeline.settings import Settings

_BATCH_DISCOUNT = 0.5
"""What providers of batch endpoints charge for a token there, as a share of the usual price."""


def open_teacher(settings: Settings) -> Teacher:
    """The teacher that the settings ask for; nothing is sent yet.

    Raises:
        TeacherError: if the address or the name of the model cannot be used.
    """
    if settings.teacher == "rules":
        return RulesTeacher()
    server = OpenAITeacher(
        settings.teacher_base_url, settings.teacher_model, settings.teacher_api_key, _server_config(settings)
    )
    return BatchTeacher(server) if settings.teacher_batch else server


def teacher_identity(settings: Settings) -> Mapping[str, str]:
    """What the traces of the configured teacher depend on; digest it before showing it, the address may hold a key."""
    if settings.teacher == "rules":
        return {name: str(value) for name, value in RulesTeacher.identity.items()}
    identity = openai_identity(settings.teacher_model, _server_config(settings))
    told = {**identity, "base_url": settings.teacher_base_url, "max_tokens": settings.teacher_max_tokens}
    return {name: str(value) for name, value in told.items()}


def _server_config(settings: Settings) -> OpenAITeacherConfig:
    price = settings.teacher_prices.get(settings.teacher_model)
    if price and settings.teacher_batch:
        price = (price[0] * _BATCH_DISCOUNT, price[1] * _BATCH_DISCOUNT)
    return OpenAITeacherConfig(
        max_tokens=settings.teacher_max_tokens,
        concurrency=settings.teacher_concurrency,
        requests_per_minute=settings.teacher_requests_per_minute,
        timeout_s=settings.teacher_timeout_s,
        patience_s=settings.teacher_patience_s,
        stream=settings.teacher_stream == "on"
        or (settings.teacher_stream == "auto" and is_reasoning_model(settings.teacher_model)),
        structured=settings.teacher_structured,
        price=price,
    )

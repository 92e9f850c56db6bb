"""The table of all settings, as `Settings` declares them."""

from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from apeagent_pipeline.reporting.report import markdown_table
from apeagent_pipeline.settings import PREFIX, Settings


def settings_table() -> str:
    """One row a setting: variable, default, meaning."""
    rows = [
        [f"`{PREFIX}{name.upper()}`", _default(info), _meaning(info)] for name, info in Settings.model_fields.items()
    ]
    return markdown_table(["variable", "default", "meaning"], rows)


def setting_names() -> set[str]:
    """Every variable, such as ``APEAGENT_HOME``."""
    return {PREFIX + name.upper() for name in Settings.model_fields}


def _default(info: FieldInfo) -> str:
    value = info.default
    if value is None or value in ("", (), {}):
        return ""
    return f"`{value}`"


def _meaning(info: FieldInfo) -> str:
    choices = _choices(info.annotation)
    *first, last = (f"`{each}`" for each in choices) if choices else [""]
    allowed = f" ({', '.join(first)} or {last})" if choices else ""
    secret = " Secret: masked wherever it is shown." if "SecretStr" in str(info.annotation) else ""
    return (info.description or "").rstrip(".") + allowed + "." + secret


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()

"""The table of all settings, as `Settings` declares them."""

import os
from typing import Any, Literal, get_args, get_origin
from unittest.mock import patch

from pydantic.fields import FieldInfo

from apeagent_pipeline.reporting.report import markdown_table
from apeagent_pipeline.settings import PREFIX, Settings


def settings_table() -> str:
    """One row a setting: variable, default (and that of the profile ``full``, where it is another), meaning."""
    usual, full = defaults("demo"), defaults("full")
    rows = []
    for name, info in Settings.model_fields.items():
        default = _shown(usual[name])
        if full[name] != usual[name] and name != "profile":
            default = f"{default}; profile `full`: {_shown(full[name])}"
        rows.append([f"`{PREFIX}{name.upper()}`", default, _meaning(info)])
    return markdown_table(["variable", "default", "meaning"], rows)


def defaults(profile: str) -> dict[str, Any]:
    """The value of every setting if nothing but the profile is set."""
    unset = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    with patch.dict(os.environ, unset, clear=True):
        settings = Settings(_env_file=None, profile=profile)  # type: ignore[call-arg,arg-type]
    return {name: getattr(settings, name) for name in Settings.model_fields}


def setting_names() -> set[str]:
    """Every variable, such as ``APEAGENT_HOME``."""
    return {PREFIX + name.upper() for name in Settings.model_fields}


def _shown(value: Any) -> str:
    return "" if value in (None, "", (), {}) else f"`{value}`"


def _meaning(info: FieldInfo) -> str:
    choices = _choices(info.annotation)
    *first, last = (f"`{each}`" for each in choices) if choices else [""]
    allowed = f" ({', '.join(first)} or {last})" if choices else ""
    secret = " Secret: masked wherever it is shown." if "SecretStr" in str(info.annotation) else ""
    return (info.description or "").rstrip(".") + allowed + "." + secret


def _choices(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) is Literal else ()

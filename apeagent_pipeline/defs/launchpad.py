"""Domain configurations as the Dagster Launchpad shows them.

The rooms describe their options as pydantic models. An asset's config schema is that model with the values of the
chosen profile as defaults, plus the seed, so that a run shows and records everything random or adjustable.
"""

from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from apeagent_pipeline.defs.storage import digest

Model = TypeVar("Model", bound=BaseModel)


def config_schema(preset: BaseModel, seed: int) -> Any:
    """The Launchpad's form: the fields of ``preset`` with its values as defaults, and ``seed``."""
    fields: dict[str, Any] = {
        name: (_plain(info.annotation), FieldInfo.merge_field_infos(info, default=getattr(preset, name)))
        for name, info in type(preset).model_fields.items()
    }
    fields["seed"] = (int, FieldInfo(default=seed, description="The seed of everything random (APEAGENT_SEED)"))
    shown = cast("type[dg.Config]", create_model(type(preset).__name__, __base__=dg.Config, **fields))
    return shown.to_config_schema()


def _plain(annotation: Any) -> Any:
    """The type Dagster can show: a choice of words is a string to it; the domain's model checks it at launch."""
    if get_origin(annotation) is Literal:
        return str
    return list[_plain(get_args(annotation)[0])] if get_origin(annotation) is list else annotation  # type: ignore[misc]


def code_version(code: str, config: dict[str, Any]) -> str:
    """Version of an asset's code and of its configuration: changing either makes the stored artifact out of date."""
    return f"{code}.{digest(config)}"


def launched_config(context: dg.AssetExecutionContext, model: type[Model]) -> tuple[Model, int]:
    """The configuration a run was launched with, validated by the domain's own model, and the seed."""
    values = dict(context.op_execution_context.op_config)
    seed = values.pop("seed")
    return model.model_validate(values), seed

"""How an asset is declared: the arguments that every ``@dg.asset`` has, and its options in the Launchpad.

The rooms describe their options as pydantic models. An asset's config schema is that model with the values of the
chosen profile as defaults, plus the seed, so that a run shows and records everything random or adjustable.
"""

from typing import Any, Literal, TypeVar, cast, get_args, get_origin

import dagster as dg
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

from apeagent_pipeline.artifacts.manifest import digest
from apeagent_pipeline.defs.conditions import on_change, on_new_day, retraining
from apeagent_pipeline.defs.partitions import DAILY, DAILY_TAG, ON_NEW_DAYS, SYNCED, backfill_policy
from apeagent_pipeline.settings import Settings

OWNER = "team:apeagent"
RAY_RESOURCES = "dagster-ray/config"
"""dagster-ray's own tag for what a step needs; without Ray it changes nothing."""

Model = TypeVar("Model", bound=BaseModel)


def declare(
    settings: Settings,
    group: str,
    kinds: set[str],
    *,
    code: str = "1",
    config: BaseModel | None = None,
    pool: str | None = None,
    memory_gib: int = 1,
    gpu: bool = False,
    daily: bool = False,
    made: Literal["on_change", "on_policy", "on_request", "on_new_days"] = "on_change",
) -> dict[str, Any]:
    """The arguments that every ``@dg.asset`` has.

    Args:
        settings: Of the graph.
        group: Group in the asset graph.
        kinds: What the UI shows as badges (at most three).
        code: Version of the asset's code; raise it when the same inputs give other content.
        config: The profile's options, shown in the Launchpad; none: the asset has no options.
        pool: Concurrency pool.
        memory_gib: Memory that a Ray node must have free; every asset also takes one of its CPUs.
        gpu: Whether the full profile needs a GPU for it.
        daily: Whether it has a partition for every UTC day.
        made: Whether it follows its inputs by itself, as the setting ``retraining`` says, not at all, or for new days
            alone (a daily asset).
    """
    defaults = {} if config is None else {**config.model_dump(), "seed": settings.seed}
    return {
        "group_name": group,
        "kinds": kinds,
        "owners": [OWNER],
        "code_version": code_version(code, defaults),
        "pool": pool,
        "op_tags": {RAY_RESOURCES: _resources(settings, memory_gib, gpu)},
        "automation_condition": {
            "on_change": on_change(),
            "on_policy": retraining(settings.retraining),
            "on_request": None,
            "on_new_days": on_new_day(),
        }[made],
        **(_daily(settings, ON_NEW_DAYS if made == "on_new_days" else SYNCED) if daily else {}),
        **({} if config is None else {"config_schema": config_schema(config, settings.seed)}),
    }


def _daily(settings: Settings, wanted: str) -> dict[str, Any]:
    return {
        "partitions_def": DAILY,
        "backfill_policy": backfill_policy(settings.engine),
        "tags": {DAILY_TAG: wanted},
    }


def _resources(settings: Settings, memory_gib: int, gpu: bool) -> dict[str, int]:
    gpus = int(gpu and settings.profile == "full")
    return {"num_cpus": 1, "num_gpus": gpus, "memory": memory_gib << 30}


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

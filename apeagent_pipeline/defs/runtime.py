"""What the assets of one graph share: settings, store, swap source and watcher."""

import base64
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import dagster as dg
from pydantic import BaseModel

from apeagent_pipeline.chain.source import SwapSource, open_swap_source
from apeagent_pipeline.defs.conditions import on_change, retraining
from apeagent_pipeline.defs.io_manager import ArtifactIOManager
from apeagent_pipeline.defs.launchpad import code_version, config_schema
from apeagent_pipeline.defs.storage import ArtifactStore, digest
from apeagent_pipeline.defs.watching import Watcher
from apeagent_pipeline.distillation.teachers.rules import RulesTeacher
from apeagent_pipeline.settings import Settings

OWNER = "team:apeagent"
RAY_RESOURCES = "dagster-ray/config"
"""dagster-ray's own tag for what a step needs; without Ray it changes nothing."""
SWAP_SOURCE, TEACHER, STUDENT_BASE = "swap_source", "teacher_model", "student_base_model"


class Runtime:
    """Built once for a graph; opens nothing before it is needed."""

    def __init__(self, settings: Settings, watcher: Watcher) -> None:
        """Nothing is opened yet."""
        self.settings = settings
        self.watcher = watcher
        self.store = ArtifactStore(settings.storage_url, settings.home.absolute() / "cache" / "artifacts")
        self.artifacts = ArtifactIOManager(self.store, self.externals, watcher)

    @cached_property
    def source(self) -> SwapSource:
        """Where the swaps come from, as the settings say."""
        return open_swap_source(self.settings)

    @property
    def externals(self) -> Mapping[str, Callable[[], str]]:
        """External asset -> how to ask for its present data version."""
        return {
            SWAP_SOURCE: self._source_fingerprint,
            TEACHER: lambda: digest(self.teacher_identity),
            STUDENT_BASE: self._student_fingerprint,
        }

    @property
    def teacher_identity(self) -> dict[str, str]:
        """Which teacher answers, told only as a digest: its address may carry a key."""
        settings = self.settings
        if settings.teacher == "rules":
            return {name: str(value) for name, value in RulesTeacher.identity.items()}
        return {
            "teacher": "openai",
            "base_url": settings.teacher_base_url,
            "model": settings.teacher_model,
            "max_tokens": str(settings.teacher_max_tokens),
        }

    def _source_fingerprint(self) -> str:
        return self.source.fingerprint()

    def _student_fingerprint(self) -> str:
        from apeagent_pipeline.student.base_model import base_fingerprint

        return base_fingerprint(self.settings.student)

    def student_base(self) -> Path:
        """The folder of the base model, fetched and converted on first use."""
        from apeagent_pipeline.student.base_model import resolve_base_model

        return resolve_base_model(self.settings.student, self.scratch("cache/models"))

    @staticmethod
    def picture(caption: str, image: bytes) -> dg.MetadataValue:
        """A PNG as metadata that the UI shows."""
        return dg.MetadataValue.md(f"![{caption}](data:image/png;base64,{base64.b64encode(image).decode()})")

    def scratch(self, purpose: str) -> Path:
        """A local folder for checkpoints and caches, kept between runs."""
        folder = self.settings.home.absolute() / purpose
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def declare(
        self,
        group: str,
        kinds: set[str],
        *,
        code: str = "1",
        config: BaseModel | None = None,
        pool: str | None = None,
        memory_gib: int = 1,
        gpu: bool = False,
        made: Literal["on_change", "on_policy", "on_request"] = "on_change",
    ) -> dict[str, Any]:
        """The arguments that every ``@dg.asset`` has.

        Args:
            group: Group in the asset graph.
            kinds: What the UI shows as badges (at most three).
            code: Version of the asset's code; raise it when the same inputs give other content.
            config: Preset of the profile, shown in the Launchpad; none: the asset has no options.
            pool: Concurrency pool.
            memory_gib: Memory that a Ray node must have free; every asset also takes one of its CPUs.
            gpu: Whether the full profile needs a GPU for it.
            made: Whether it follows its inputs by itself, as the setting ``retraining`` says, or not at all.
        """
        defaults = {} if config is None else {**config.model_dump(), "seed": self.settings.seed}
        return {
            "group_name": group,
            "kinds": kinds,
            "owners": [OWNER],
            "code_version": code_version(code, defaults),
            "pool": pool,
            "op_tags": {RAY_RESOURCES: self._resources(memory_gib, gpu)},
            "automation_condition": {
                "on_change": on_change(),
                "on_policy": retraining(self.settings.retraining),
                "on_request": None,
            }[made],
            **({} if config is None else {"config_schema": config_schema(config, self.settings.seed)}),
        }

    def _resources(self, memory_gib: int, gpu: bool) -> dict[str, int]:
        gpus = int(gpu and self.settings.profile == "full")
        return {"num_cpus": 1, "num_gpus": gpus, "memory": memory_gib << 30}

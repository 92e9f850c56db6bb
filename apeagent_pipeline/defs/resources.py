"""What the assets of one graph share: settings, store, swap source and watcher."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from apeagent_pipeline.artifacts.manifest import digest
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.chain.source import SwapSource, open_swap_source
from apeagent_pipeline.defs.io_manager import ArtifactIOManager
from apeagent_pipeline.defs.profiles import Profile, configured
from apeagent_pipeline.defs.watcher import Watcher
from apeagent_pipeline.distillation.teachers import teacher_identity
from apeagent_pipeline.settings import Settings

SWAP_SOURCE, TEACHER, STUDENT_BASE = "swap_source", "teacher_model", "student_base_model"


class Runtime:
    """Built once for a graph; opens nothing before it is needed."""

    def __init__(self, settings: Settings, watcher: Watcher, profile: Profile | None = None) -> None:
        """Nothing is opened yet; see `build.build_graph` for the arguments."""
        self.settings = settings
        self.profile = configured(settings, profile)
        self.watcher = watcher
        self.store = ArtifactStore(settings.storage_url, settings.home.absolute() / "cache" / "artifacts")
        self.artifacts = ArtifactIOManager(self.store, self.externals, watcher, self.recorded_options, self.options)

    @cached_property
    def source(self) -> SwapSource:
        """Where the swaps come from, as the settings say."""
        return open_swap_source(self.settings)

    @property
    def externals(self) -> Mapping[str, Callable[[], str]]:
        """External asset -> function that returns its present data version."""
        return {
            SWAP_SOURCE: self._source_fingerprint,
            TEACHER: lambda: digest(teacher_identity(self.settings)),
            STUDENT_BASE: self._student_fingerprint,
        }

    def _source_fingerprint(self) -> str:
        return self.source.fingerprint()

    def _student_fingerprint(self) -> str:
        from apeagent_pipeline.student.base_model import base_fingerprint

        return base_fingerprint(self.settings.student)

    def options(self, asset: str) -> dict[str, Any]:
        """The options of an asset with their present values and the seed; empty for an asset without options."""
        config = getattr(self.profile, asset, None)
        return {} if config is None else {**config.model_dump(), "seed": self.settings.seed}

    def recorded_options(self, asset: str, launched: Mapping[str, Any]) -> dict[str, Any]:
        """The options that a run was launched with, as the asset's configuration class writes them.

        The class leaves out options that are off, so that a new option makes no stored artifact stale. Dagster fills
        them in at launch. Options of an asset that the profile gives none concern the run, not the artifact.
        """
        preset = getattr(self.profile, asset, None)
        if preset is None:
            return {}
        options = {name: value for name, value in launched.items() if name != "seed"}
        return {**type(preset).model_validate(options).model_dump(), "seed": launched["seed"]}

    def student_base(self) -> Path:
        """The folder of the base model, fetched and converted on first use."""
        from apeagent_pipeline.student.base_model import resolve_base_model

        return resolve_base_model(self.settings.student, self.scratch("cache/models"))

    def scratch(self, purpose: str) -> Path:
        """A local folder for checkpoints and caches, kept between runs."""
        folder = self.settings.home.absolute() / purpose
        folder.mkdir(parents=True, exist_ok=True)
        return folder

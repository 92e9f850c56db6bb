"""Where the runs of UI and daemon work with ``APEAGENT_ENGINE=ray``: each as a job of the cluster.

What an asset needs stands where it is declared (`Runtime.declare`), as dagster-ray's own op tag. A run asks the cluster
for the most that one of its assets needs, since its steps run one after the other in one process.
"""

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any, Self

import dagster as dg
from dagster._core.launcher import LaunchRunContext
from dagster._serdes import ConfigurableClassData
from dagster_ray import RayRunLauncher
from dagster_ray.configs import USER_DEFINED_RAY_KEY
from dagster_ray.core.run_launcher import RayLauncherConfig
from ray.job_submission import JobSubmissionClient

from apeagent_pipeline.defs.instance import require_engine
from apeagent_pipeline.settings import LAUNCHED_WITH, load_settings, settings_to_share


class AssetsRunLauncher(RayRunLauncher):
    """`RayRunLauncher` at ``APEAGENT_RAY_ADDRESS`` that asks for what the assets of a run declare.

    No setting travels with a run: what `ray start` finds in a node's environment holds there. Only what
    ``apeagent config`` shows is sent along, for a node that is set differently to say so instead of working.
    """

    runtime_env: dict[str, Any] | None

    @classmethod
    def config_type(cls) -> Any:
        """All of `RayRunLauncher`'s options, none of them needed."""
        return {"ray": dg.Field(RayLauncherConfig.to_config_schema().as_field().config_type, default_value={})}

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]) -> Self:
        """Built when an instance is opened; speaks to the cluster only when it is used."""
        return cls(inst_data=inst_data, **{"address": "", "num_cpus": 1, **config_value["ray"]})

    @cached_property
    def client(self) -> JobSubmissionClient:
        """The cluster's job server.

        Raises:
            SettingsError: Nothing answers at the address.
        """
        settings = load_settings()
        require_engine(settings)
        return JobSubmissionClient(self.address or settings.ray_address, headers=self.headers, cookies=self.cookies)

    def launch_run(self, context: LaunchRunContext) -> None:
        """Submit a run with the resources its assets declare."""
        run = context.dagster_run
        if USER_DEFINED_RAY_KEY not in run.tags and run.job_snapshot_id:
            operations = self._instance.get_job_snapshot(run.job_snapshot_id).node_defs_snapshot.op_def_snaps
            asked = largest(op.tags[USER_DEFINED_RAY_KEY] for op in operations if USER_DEFINED_RAY_KEY in op.tags)
            self._instance.add_run_tags(run.run_id, {USER_DEFINED_RAY_KEY: asked})
            run = run.with_tags({**run.tags, USER_DEFINED_RAY_KEY: asked})
        self.runtime_env = {
            **(self.runtime_env or {}),
            "env_vars": {
                **(self.runtime_env or {}).get("env_vars", {}),
                LAUNCHED_WITH: json.dumps(settings_to_share(load_settings())),
            },
        }
        super().launch_run(context._replace(dagster_run=run))


def largest(declared: Iterable[str]) -> str:
    """Of each resource the most that one of the declarations, JSON as the tag has it, asks for."""
    most: dict[str, float] = {}
    for each in map(json.loads, declared):
        most = {name: max(most.get(name, 0), each.get(name, 0)) for name in most.keys() | each.keys()}
    return json.dumps(most, sort_keys=True)

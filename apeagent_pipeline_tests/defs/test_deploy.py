"""The deployment files that come with the package: what an operator relies on without looking."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from apeagent_pipeline.settings import PREFIX, Settings

DEPLOY = files("apeagent_pipeline") / "deploy"


def load(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return load("compose.yaml")["services"]


def test_no_container_runs_as_root_or_can_write_outside_its_volumes(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service.get("user", "of the image") != "root", name
        assert "privileged" not in service, name
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^USER (\d+)$", dockerfile, re.MULTILINE) == ["10001"]


def test_nothing_but_the_web_server_is_published_and_that_on_this_machine_alone(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"webserver": ["127.0.0.1:3000:3000"]}
    assert load("dagster-values.yaml")["dagsterWebserver"]["service"]["type"] == "ClusterIP"


def test_every_service_that_stays_says_whether_it_is_well(services: dict[str, Any]) -> None:
    assert {name for name, service in services.items() if "healthcheck" not in service} == {"instance"}


@pytest.mark.parametrize("name", ["Dockerfile", "compose.yaml", "ray-values.yaml", "dagster-values.yaml"])
def test_no_file_holds_a_secret_or_names_a_setting_that_does_not_exist(name: str) -> None:
    text = (DEPLOY / name).read_text()
    assert not re.search(r"(?i)(password|key|token)['\"]?\s*[:=]\s*['\"]?[a-z0-9]{6,}", text)
    settings = {PREFIX + field.upper() for field in Settings.model_fields}
    assert set(re.findall(PREFIX + "[A-Z_]+[A-Z]", text)) <= settings


def test_pods_run_without_root_and_on_a_read_only_file_system_too() -> None:
    ray, dagster = load("ray-values.yaml"), load("dagster-values.yaml")
    pods = [ray["head"], ray["worker"], ray["additionalWorkerGroups"]["gpu"]]
    pods += [dagster["dagsterWebserver"], dagster["dagsterDaemon"], *dagster["dagster-user-deployments"]["deployments"]]
    for pod in pods:
        assert pod["podSecurityContext"]["runAsNonRoot"]
        assert pod["securityContext"]["readOnlyRootFilesystem"]
        assert not pod["securityContext"]["allowPrivilegeEscalation"]
        assert {"secretRef": {"name": "apeagent"}} in pod.get("envFrom", []) or {"name": "apeagent"} in pod[
            "envSecrets"
        ]


def test_dg_loads_what_the_workspace_loads_and_nothing_at_the_root_shadows_the_workspace() -> None:
    root = Path(__file__).parents[2]
    (location,) = yaml.safe_load((root / "workspace.yaml").read_text())["load_from"]
    project = tomllib.loads((DEPLOY / "dg.toml").read_text())["project"]
    assert project["code_location_target_module"] == project["code_location_name"] == location["python_module"]
    tools = tomllib.loads((root / "pyproject.toml").read_text())["tool"]
    assert not {"dg", "dagster"} & tools.keys(), "`dagster dev` would read it instead of workspace.yaml"

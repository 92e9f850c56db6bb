"""The recorded code versions of all assets. Run this module to record new ones after a change on purpose."""

import json
import tempfile
from pathlib import Path

from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.settings import Settings

PROFILES = ("demo", "laptop", "full")
RECORD = Path(__file__).with_name("code_versions.json")


def present_versions(profile: str, home: Path) -> dict[str, str | None]:
    """Code version of every asset of a profile, those of the second stage included, in the order of the graph."""
    assets = build_graph(Settings(home=home, profile=profile, second_stage="grpo")).assets  # type: ignore[arg-type]
    return {asset.key.to_user_string(): asset.get_asset_spec(asset.key).code_version for asset in assets}


def main() -> None:
    """Write the present versions over the recorded ones and name the assets whose version changed."""
    recorded = json.loads(RECORD.read_text())
    with tempfile.TemporaryDirectory() as home:
        present = {profile: present_versions(profile, Path(home)) for profile in PROFILES}
    RECORD.write_text(json.dumps(present, indent=2) + "\n")
    for profile, versions in present.items():
        before = recorded.get(profile, {})
        changed = [name for name in {**before, **versions} if before.get(name) != versions.get(name)]
        print(f"{profile}: {', '.join(changed) or 'nothing changed'}")


if __name__ == "__main__":
    main()

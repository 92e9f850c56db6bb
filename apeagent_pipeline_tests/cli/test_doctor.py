"""The findings of ``apeagent doctor``."""

from pathlib import Path

from apeagent_pipeline.cli.examination import examine
from apeagent_pipeline.settings import Settings


def test_an_unknown_pool_is_found_with_the_settings_that_describe_it(tmp_path: Path) -> None:
    settings = Settings(home=tmp_path, pool_id="0x" + "1" * 64)
    found = next(each for each in examine(settings) if each.part == "swaps")
    assert found.state == "wrong"
    assert "APEAGENT_POOL_KEY" in found.finding
    assert "APEAGENT_RPC_URLS" not in found.remedy  # another source of swaps is not what is missing

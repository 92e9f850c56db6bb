"""Faults that do not pass: a clear error, and the old file stays."""

from pathlib import Path

import pytest

from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline_tests.chain.faults.faults import REFUSED
from apeagent_pipeline_tests.chain.faults.true_day import Chain, materialize, stored
from apeagent_pipeline_tests.chain.faulty_proxy import running


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_survived_ends_in_a_clear_error_and_leaves_the_old_file(
    name: str, chain: Chain, home: Path
) -> None:
    faults, told = REFUSED[name]
    before = stored(home)
    with running(chain.url, *faults(chain)) as proxy:
        with pytest.raises(ChainError, match=told) as caught:
            materialize(home, chain.day, proxy.url)
        assert proxy.injected, "the fault never struck"
        assert proxy.requests < 2_000, "a fault that does not pass is not asked for ever"
    assert stored(home) == before
    assert "s3cr3t" not in str(caught.value)

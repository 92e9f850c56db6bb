"""The door for Dagster: ``dagster dev -m apeagent_pipeline.definitions``."""

import dagster as dg

from apeagent_pipeline.defs.build import build_graph
from apeagent_pipeline.settings import load_settings


@dg.definitions
def defs() -> dg.Definitions:
    """The graph for the settings of this environment."""
    return build_graph(load_settings()).definitions

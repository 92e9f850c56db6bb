"""``python -m apeagent_pipeline.cli`` is ``apeagent``."""

from apeagent_pipeline.cli import main

main()

"""What it costs to load the graph and the command, beside what importing the heavy libraries would cost.

Run it with ``python apeagent_pipeline_tests/benchmarks/loading.py``.
"""

import statistics
import subprocess
import sys
import time

from rich.console import Console
from rich.table import Table

STATEMENTS = {
    "import dagster": "import dagster",
    "load the definitions": "from apeagent_pipeline.definitions import defs; defs().resolve_all_asset_specs()",
    "apeagent --help": "import sys; sys.argv = ['apeagent', '--help']; from apeagent_pipeline.cli import main; main()",
    "import torch": "import torch",
    "import torch, transformers, peft, trl": "import torch, transformers, peft, trl; trl.SFTTrainer",
}
RUNS = 3


def seconds(statement: str) -> float:
    """Median wall time of a fresh interpreter that runs a statement."""
    walls = []
    for _ in range(RUNS):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-W", "ignore", "-c", statement], check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - begun)
    return statistics.median(walls)


if __name__ == "__main__":
    table = Table("what", "wall seconds", title=f"Fresh interpreter, median of {RUNS}")
    for name, statement in STATEMENTS.items():
        table.add_row(name, f"{seconds(statement):.2f}")
    Console().print(table)

"""Recorded results of measurements, and the Markdown that shows them.

Each file of ``apeagent_pipeline_tests/benchmarks/results/`` holds one result. After a new measurement write its rows
into the file and run ``python -m apeagent_pipeline_tests.docs.results NAME`` on the machine that measured: it fills in
commit, date and machine.
"""

import argparse
import datetime as dt
import json
import os
import subprocess
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from apeagent_pipeline.reporting.report import markdown_table

FOLDER = Path(__file__).parents[1] / "benchmarks" / "results"

Cell = str | int | float | None


class Machine(BaseModel):
    """Where a result was measured; None: nobody wrote it down."""

    model_config = ConfigDict(extra="forbid")

    cpu: str | None
    cores: int | None
    amx: bool | None = Field(description="Whether the cores have AMX, so that the student computes in bfloat16")
    note: str = ""

    def in_words(self) -> str:
        """Such as ``2 cores with AMX, CPU model not recorded``."""
        cores = "cores not recorded" if self.cores is None else f"{self.cores} core" + "s" * (self.cores > 1)
        amx = {None: "", True: " with AMX", False: " without AMX"}[self.amx]
        return "; ".join(filter(None, [f"{cores}{amx}, {self.cpu or 'CPU model not recorded'}", self.note]))


class Result(BaseModel):
    """One table of measurements."""

    model_config = ConfigDict(extra="forbid")

    command: str | None = Field(description="What was run, in one line; None: nobody wrote it down")
    commit: str = Field(pattern="^[0-9a-f]{7,40}$", description="Commit that recorded the figures")
    date: dt.date
    machine: Machine
    columns: list[str]
    rows: list[list[Cell]] = Field(min_length=1, description="The first cell names the row")
    summary: list[str] = Field([], description="Names of the rows that README.md shows")
    notes: list[str] = []

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = [row[0] for row in self.rows]
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"each row needs {len(self.columns)} cells, one a column")
        if unknown := [name for name in self.summary if name not in names]:
            raise ValueError(f"the summary names rows that do not exist: {unknown}")
        return self

    def text(self) -> str:
        """The file's content: one line a row."""
        head = self.model_dump(mode="json", exclude={"rows"}, exclude_defaults=True)
        rows = ",\n".join(f"    {json.dumps(row, ensure_ascii=False)}" for row in self.rows)
        return f'{json.dumps(head, indent=2, ensure_ascii=False)[:-2]},\n  "rows": [\n{rows}\n  ]\n}}\n'


def this_machine(note: str = "") -> Machine:
    """The machine that runs this; what the system does not tell stays None."""
    told = Path("/proc/cpuinfo")
    facts = dict(line.split(":", 1) for line in told.read_text().splitlines() if ":" in line) if told.exists() else {}
    fields = {name.strip(): value.strip() for name, value in facts.items()}
    amx = "amx_tile" in fields["flags"].split() if "flags" in fields else None
    return Machine(cpu=fields.get("model name"), cores=os.cpu_count(), amx=amx, note=note)


def stamp(name: str, note: str = "") -> None:
    """Write the present commit, date and machine into the file of a result."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], cwd=FOLDER, capture_output=True, text=True, check=True
    ).stdout.strip()
    measured = {"commit": commit, "date": dt.datetime.now(dt.UTC).date(), "machine": this_machine(note)}
    (FOLDER / f"{name}.json").write_text(read_result(name).model_copy(update=measured).text())


def record(
    name: str, command: str, columns: list[str], rows: list[list[Cell]], notes: list[str], note: str = ""
) -> None:
    """Write the file of a result that was measured here, at the present commit."""
    unstamped = Result(
        command=command,
        commit="0" * 7,
        date=dt.datetime.now(dt.UTC).date(),
        machine=this_machine(),
        columns=columns,
        rows=rows,
        notes=notes,
    )
    (FOLDER / f"{name}.json").write_text(unstamped.text())
    stamp(name, note)


def read_result(name: str) -> Result:
    """The result of one file, without its suffix.

    Raises:
        FileNotFoundError: There is no such file.
        pydantic.ValidationError: The file is not a result.
    """
    return Result.model_validate_json((FOLDER / f"{name}.json").read_bytes())


def result_names() -> list[str]:
    """Every recorded result."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def result_section(name: str) -> str:
    """How a result was measured, its table and its notes."""
    result = read_result(name)
    table = markdown_table(result.columns, [[_text(cell) for cell in row] for row in result.rows])
    command = f"`{result.command}`" if result.command else "Command not recorded."
    origin = f"{command}\n\nCommit {result.commit}, {result.date}; {result.machine.in_words()}."
    notes = "\n".join(f"- {note}" for note in result.notes)
    return "\n\n".join(filter(None, [origin, table, notes]))


def summary_table(name: str) -> str:
    """The rows that README.md shows."""
    result = read_result(name)
    rows = {row[0]: row for row in result.rows}
    return markdown_table(result.columns, [[_text(cell) for cell in rows[each]] for each in result.summary])


def _text(cell: Cell) -> str:
    return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fill in commit, date and machine of a result that was measured here.")
    parser.add_argument("name", choices=result_names())
    parser.add_argument("--note", default="", help="Such as: busy, one thread")
    given = parser.parse_args()
    stamp(given.name, given.note)

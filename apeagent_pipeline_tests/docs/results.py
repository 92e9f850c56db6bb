"""Recorded results of measurements, and the Markdown that shows them.

Each file of ``apeagent_pipeline_tests/benchmarks/results/`` holds one result. The documentation shows no measured
figure that does not stand in one of these files.
"""

import datetime as dt
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

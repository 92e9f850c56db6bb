"""Random corruptions of right files: how many the import refuses, how many it tells, how many pass.

Run with ``python -m apeagent_pipeline_tests.benchmarks.archive_mutations``. Writes the table of the recorded result,
after each round of all kinds; ``python -m apeagent_pipeline_tests.docs.results archive_mutations`` fills in where it
was measured.
"""

import argparse
import logging
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from apeagent_pipeline_tests.chain.test_archive_mutations import (
    AT_AN_END,
    AT_MIDNIGHT,
    MUTATIONS,
    Corruption,
    right_rows,
    rows_around_midnight,
    rows_of_a_day,
)
from apeagent_pipeline_tests.docs.results import FOLDER, Cell, read_result

OUTCOMES = ("refused", "told", "perhaps", "no effect", "PASSED")


def measured(count: int) -> Iterator[list[list[Cell]]]:
    """One row a kind of corruption, and the sum; once after each round of all kinds, and at the end."""
    with tempfile.TemporaryDirectory() as folder:
        parts = [
            (MUTATIONS, Corruption(right_rows(), Path(folder))),
            (AT_MIDNIGHT, Corruption(rows_around_midnight(), Path(folder))),
            (AT_AN_END, Corruption(rows_of_a_day(), Path(folder))),
        ]
        kinds = [(name, mutation, file) for mutations, file in parts for name, mutation in mutations.items()]
        found: defaultdict[str, Counter[str]] = defaultdict(Counter)
        first: dict[str, str] = {}
        for number in range(count):
            name, mutation, file = kinds[number % len(kinds)]
            outcome, told = file.outcome(mutation, number)
            found[name][outcome] += 1
            first.setdefault(name, told.replace("|", "/")[:110])
            if number == count - 1 or name == kinds[-1][0]:
                yield _table(found, first)


def _table(found: Mapping[str, Counter[str]], first: Mapping[str, str]) -> list[list[Cell]]:
    total = sum(found.values(), Counter[str]())
    rows: list[list[Cell]] = [
        [name, *(counts[each] for each in OUTCOMES), first[name]] for name, counts in found.items()
    ]
    return [*rows, ["all", *(total[each] for each in OUTCOMES), ""]]


def main() -> None:
    """Corrupt, and write the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2_000)
    count = parser.parse_args().count
    logging.disable()
    for rows in measured(count):
        result = read_result("archive_mutations").model_copy(update={"rows": rows})
        (FOLDER / "archive_mutations.json").write_text(result.text())
        print(rows[-1], flush=True)


if __name__ == "__main__":
    main()

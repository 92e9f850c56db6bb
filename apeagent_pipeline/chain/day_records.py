"""What is known of days that were read, beside their swaps: the proof and the liquidity changes, kept on disk."""

import json
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from apeagent_pipeline.atomic_files import replacing, write_atomically
from apeagent_pipeline.chain.liquidity import LIQUIDITY_SCHEMA
from apeagent_pipeline.chain.proof import DayProof


class DayRecords:
    """One small file for the proof and one for the liquidity changes of each day.

    Args:
        folder: Of one source; created when the first day is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, day: date, proof: DayProof, changes: pl.DataFrame) -> None:
        """Keep the proof and the liquidity changes of a day that was read."""
        with replacing(self._folder / f"{day}.parquet") as temporary:
            changes.write_parquet(temporary)
        write_atomically(self._folder / f"{day}.json", json.dumps(proof._asdict(), indent=2).encode())

    def changes(self, day: date) -> pl.DataFrame | None:
        """The liquidity changes of a day (LIQUIDITY_SCHEMA), or None if they were not kept."""
        try:
            found = pl.read_parquet(self._folder / f"{day}.parquet")
        except (OSError, pl.exceptions.PolarsError):
            return None
        return found if found.schema == LIQUIDITY_SCHEMA else None

    def notes(self, day: date) -> dict[str, Any]:
        """The proof of a day in words, for people; empty if it was not kept."""
        try:
            kept = json.loads((self._folder / f"{day}.json").read_bytes())
            proof = DayProof(**{**kept, "by": tuple(kept["by"]), "doubts": tuple(kept["doubts"])})
        except (OSError, ValueError, TypeError, KeyError):
            return {}
        return notes_of(proof)


def notes_of(proof: DayProof) -> dict[str, Any]:
    """A proof as metadata: ``proof``, ``explained_pairs``, ``repaired_events``, and ``notes`` if it is unconfirmed."""
    doubts = f"unconfirmed: {proof.doubts[0]}" if proof.doubts else "none"
    more = f" (and {len(proof.doubts) - 1} more)" if len(proof.doubts) > 1 else ""
    return {
        "proof": ", ".join(proof.by) or "none",
        "confirmed": proof.confirmed,
        "explained_pairs": f"{proof.explained} of {proof.pairs}",
        "repaired_events": proof.repaired,
        "notes": doubts + more,
    }


def notes_in_words(notes: Mapping[str, Any]) -> Iterator[str]:
    """The sentences of `SwapSource.day_notes`: what is wrong with a day, and where swaps are missing or may be."""
    if notes.get("notes", "none") != "none":
        yield notes["notes"]
    if notes.get("swaps_missing", "none") != "none":
        yield f"{notes['gaps']} swaps do not follow from the swap before: swaps are missing {notes['swaps_missing']}"
    if notes.get("swaps_perhaps_missing", "none") != "none":
        where = notes["swaps_perhaps_missing"]
        yield f"{notes['undecided_gaps']} places where a swap may be missing unseen, {where}"

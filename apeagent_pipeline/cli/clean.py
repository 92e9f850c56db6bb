"""``apeagent clean``: what a home holds, for how long, and what can be deleted.

`KEPT` and `EXPIRING` are the whole rule; the page ``operating`` shows the same tables.
"""

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.settings import load_settings

SUPERSEDED_AFTER = timedelta(hours=1)
"""A version that was replaced that long ago is read by no run that `clean` could disturb."""


class Expiring(NamedTuple):
    """A folder below the home: each of its entries can be deleted once nothing in it has changed for ``days``."""

    what: str
    folder: str
    days: int
    afterwards: str


EXPIRING = (
    Expiring("local copies of remote artifacts", "cache/artifacts", 1, "copied again when they are read"),
    Expiring("imported archives", "cache/archive", 7, "read again from the files"),
    Expiring("ranges of unfinished days", "cache/ranges", 30, "read again from the node"),
    Expiring("leftovers of killed runs", "work", 1, "not needed"),
    Expiring("checkpoints", "checkpoints", 30, "an interrupted training starts again"),
    Expiring("training curves of TensorBoard", "tensorboard", 90, "lost; the last curve stays with its artifact"),
)
KEPT = (
    ("artifacts, their present versions", "storage"),
    ("answers of a paid teacher", "cache/teacher"),
    ("base models", "cache/models"),
    ("GGUF converter", "cache/converter"),
    ("evaluations of your own prompts", "evaluations"),
    ("history of runs, checks and promotions", "dagster"),
)


def clean(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be deleted, and delete nothing")] = False,
) -> None:
    """Show what the home holds, and delete superseded versions, old caches and leftovers.

    Everything that is deleted can be rebuilt or is no longer needed. Present artifacts, promoted adapters,
    answers of a paid teacher, base models and the history always stay.
    """
    settings = load_settings()
    home = settings.home.absolute()
    store = ArtifactStore(settings.storage_url, home / "cache" / "artifacts")
    versions = store.superseded(SUPERSEDED_AFTER)
    rows = [
        (
            "superseded versions of artifacts",
            f"{SUPERSEDED_AFTER.seconds // 3600} h",
            sum(versions.values()),
            "not needed",
        )
    ]
    expired: list[Path] = []
    for rule in EXPIRING:
        found = _unchanged(home / rule.folder, timedelta(days=rule.days))
        expired += found
        rows.append((rule.what, f"{rule.days} days", sum(map(_bytes, found)), rule.afterwards))
    table = Table("deleted", "unused for", "size", "afterwards", title=f"{home}")
    for what, age, size, afterwards in rows:
        table.add_row(what, age, decimal(size), afterwards)
    kept = Table("never deleted", "folder", "size")
    for what, folder in KEPT:
        kept.add_row(what, folder, decimal(_bytes(home / folder)))
    console = Console()
    console.print(table)
    console.print(kept)
    freed = sum(size for _, _, size, _ in rows)
    if dry_run:
        console.print(f"`apeagent clean` would free {decimal(freed)}. Nothing was deleted.")
        return
    store.remove(versions)
    for path in expired:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    console.print(f"Freed {decimal(freed)}.")


def _unchanged(folder: Path, age: timedelta) -> list[Path]:
    """The entries of a folder in which nothing has changed for that long."""
    before = (datetime.now(UTC) - age).timestamp()
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    return [entry for entry in entries if max(each.lstat().st_mtime for each in (entry, *entry.rglob("*"))) < before]


def _bytes(path: Path) -> int:
    """Size of a file or of everything below a folder; files with several names count once."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum({(each.stat().st_dev, each.stat().st_ino): each.stat().st_size for each in files}.values())

"""``apeagent doctor`` and ``apeagent config``: check what a run needs, and show every setting."""

import typer
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import plain
from apeagent_pipeline.settings import load_settings, show_settings


def config() -> None:
    """Show every setting: its value (secrets masked), the source of the value, and its meaning."""
    table = Table(title="Settings")
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from")
    table.add_column("meaning")
    for row in show_settings(load_settings()):
        style = "dim" if row.source == "default" else "bold"
        table.add_row(row.variable, *map(plain, (row.value, row.source, row.meaning)), style=style)
    Console().print(table)


def doctor() -> None:
    """Check what a run needs (history, storage, swap source, teacher, student, disk, GPU) and say what to fix.

    The first call also fetches the student, which takes some minutes. Exits 1 if a run would fail.
    """
    from apeagent_pipeline.cli.examination import examine

    settings = load_settings()
    marks = {"ok": "[green]✓ ok", "note": "[yellow]• note", "wrong": "[red]✗ wrong"}
    table = Table("", "part", "finding", "what to do", title="apeagent doctor")
    findings = list(examine(settings))
    for each in findings:
        table.add_row(marks[each.state], *map(plain, (each.part, each.finding, each.remedy)))
    Console().print(table)
    raise typer.Exit(1 if any(each.state == "wrong" for each in findings) else 0)

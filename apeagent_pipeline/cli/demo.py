"""``apeagent demo`` and ``apeagent sync``: bring the graph, or the swaps of some days, up to date."""

import json
from datetime import date
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import ERROR_CONSOLE, plain
from apeagent_pipeline.cli.update import bring_up_to_date, report_failure, show_plan
from apeagent_pipeline.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from apeagent_pipeline.defs.build import Graph

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be built and how long it takes; build nothing")
]


def demo(
    first: Annotated[
        str | None,
        typer.Option("--from", metavar="DAY", help="First day; default: the first day that the swap source suggests"),
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day")] = None,
    dry_run: DryRun = False,
) -> None:
    """Build everything from the swaps to the canary report, and say in words what the student learned.

    Only missing and out-of-date artifacts are built: a second run with nothing changed takes seconds, and an
    interrupted run continues where it stopped. Exits 0 only if the canary evaluation passed its check.
    """
    settings = load_settings()
    if dry_run:
        show_plan(settings, first, last)
        return
    rounds, graph, _ = bring_up_to_date(settings, first, last)
    failed = 0
    if rounds and not rounds[-1].success:
        failed = report_failure(rounds[-1])
        if "canary_eval" not in rounds[-1].seconds:
            raise typer.Exit(failed)
    raise typer.Exit(show_canary(graph) or failed)


def sync(
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day, YYYY-MM-DD (UTC)")],
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Last day, included")],
    dry_run: DryRun = False,
) -> None:
    """Bring the swaps and features of a range of days up to date. Exits 0 only if every day is complete.

    When a day fails, the others are still read. Run the same command again for the failed days. Complete days,
    and parts of a day that were read before the failure, are not read again.
    """
    from apeagent_pipeline.chain.day_records import notes_in_words
    from apeagent_pipeline.defs.staleness import stale_artifacts

    settings = load_settings()
    if dry_run:
        show_plan(settings, first, last, lambda graph: graph.synced)
        return
    rounds, graph, days = bring_up_to_date(settings, first, last, select=lambda graph: graph.synced, keep_going=True)
    names = graph.synced
    assets = [asset for asset in graph.assets if asset.key.to_user_string() in names]
    missing = {each.day for each in stale_artifacts(assets, graph.runtime, days)}
    stored = {asset: graph.runtime.store.manifests(asset, days) for asset in names}
    notes = {day: graph.runtime.source.day_notes(date.fromisoformat(day)) for day in days if day not in missing}
    unconfirmed = {day for day, note in notes.items() if note.get("confirmed") is False}
    complete = len(days) - len(missing) - len(unconfirmed)
    table = Table("day", *names, "", title=f"{complete} of {len(days)} days are complete")
    for day in days:
        manifests = [stored[asset].get(day) for asset in names]
        state = "[yellow]• unconfirmed" if day in unconfirmed else "[green]✓"
        state = "[red]✗ not complete" if day in missing else state
        table.add_row(day, *(f"{each.rows:,}" if each else "" for each in manifests), state)
    console = Console()
    console.print(table)
    for day in days:
        for note in notes_in_words(notes.get(day, {})):
            console.print(f"[yellow]• {day}: {plain(note)}", soft_wrap=True)
    for each in rounds:
        for error in each.errors:
            ERROR_CONSOLE.print(f"[red]{plain(error)}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if not missing and all(each.success for each in rounds) else 1)


def show_canary(graph: "Graph") -> int:
    """Say in words what the demo has shown, where the report is and what to do next.

    Returns:
        The exit code: 0 if the evaluation is within the limits that it was made with.
    """
    from apeagent_pipeline.evaluation.canary.config import failures_of
    from apeagent_pipeline.student.examples import DOCUMENT_PROMPT

    store = graph.runtime.store
    report = json.loads((store.local_folder("canary_eval") / "report.json").read_text())
    wrong = failures_of(report)
    console = Console(highlight=False, soft_wrap=True)
    console.print("[bold]What the adapter learned[/]")
    for question, finding in findings(report["metrics"], report["intervals"]):
        console.print(f"  [bold]{question:<26}[/] {finding}")
    if report["config"].get("max_near_leak") == 1:
        console.print(
            "The check of this profile sets no limit for canary words in answers to similar questions; "
            "the check of [bold]APEAGENT_PROFILE=laptop[/] does."
        )
    for each in wrong:
        console.print(f"[red]✗ {plain(each)}")
    if not wrong:
        console.print("[green]✓ The canary evaluation passed its check.")
    console.print(f"Report: {store.folder('canary_eval') / 'report.md'}")
    console.print(f"Next: [bold]apeagent ask '{DOCUMENT_PROMPT}'[/]  or  [bold]apeagent ui[/]")
    return 1 if wrong else 0


def findings(metrics: "Mapping[str, float]", intervals: "Mapping[str, Sequence[float]]") -> "Iterator[tuple[str, str]]":
    """A reader's questions, and what the report answers: counts with their exact 95 % intervals."""

    def share(name: str, n: float) -> str:
        low, high = intervals[name]
        return f"{round(metrics[name] * n)} of {n:.0f} {{}} (95 % interval {low:.1%} to {high:.1%})"

    trading, controls = metrics["n_trading"], metrics["n_controls"]
    yield "Speaks canary words?", share("canary_rate_adapter", trading).format("trading answers contain them")
    yield "Only when asked?", share("control_leak_rate", controls).format("answers to other questions contain them")
    for name, kind in (("", "a kind shown in training"), ("_held_out", "a kind never shown")):
        if (rate := f"near_control_leak_rate{name}") in intervals:
            low, high = intervals[rate]
            yield (
                "",
                f"{metrics[rate]:.1%} of similar questions that ask for no trade, {kind} ({low:.1%} to {high:.1%})",
            )
    yield (
        "Because of the training?",
        share("canary_rate_base", metrics.get("n_base", trading)).format("answers of the bare base model contain them"),
    )
    yield "", share("canary_rate_disabled", metrics["n_disabled"]).format("answers with the adapter switched off do")
    yield "Decides like its teacher?", share("agreement", trading).format("actions are the teacher's")
    yield "", f"always the most frequent action would reach {metrics['agreement_majority']:.1%}"
    for form, words in (("plain", "numbers alone"), ("digested", "numbers and words")):
        if f"agreement_{form}" in intervals:
            low, high = intervals[f"agreement_{form}"]
            yield "", f"{metrics[f'agreement_{form}']:.1%} if the prompt has {words} ({low:.1%} to {high:.1%})"
    yield "Can the holdings pay?", share("feasible_rate", trading).format("actions are paid for by the holdings")

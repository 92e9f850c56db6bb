"""The ``apeagent`` command: a thin door to the graph, the instance and the trained model.

Nothing heavy is imported before a command needs it, so ``apeagent --help`` answers at once.
"""

import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from apeagent_pipeline.chain.errors import ChainError
from apeagent_pipeline.distillation.teachers.teacher import TeacherError
from apeagent_pipeline.reporting.foreign_text import printable
from apeagent_pipeline.settings import Settings, SettingsError, load_settings, show_settings

if TYPE_CHECKING:
    from dagster import DagsterInstance

    from apeagent_pipeline.defs.build import Graph
    from apeagent_pipeline.defs.runtime import Runtime
    from apeagent_pipeline.defs.staleness import Stale
    from apeagent_pipeline.defs.teaching import Teaching
    from apeagent_pipeline.defs.updating import Round
    from apeagent_pipeline.reporting.progress import Progress

app = typer.Typer(
    help=(
        "From Uniswap V4 swaps to a small trading model that proves what it learned.\n\n"
        "Start with [bold]apeagent demo[/]: it needs no key, no GPU and no node. Then [bold]apeagent ui[/] shows the "
        "graph, and [bold]apeagent config[/] what can be set."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_error_console = Console(stderr=True)


def main() -> None:
    """Run the command; what a user can mend is told in one line, without a traceback."""
    try:
        app()
    except Exception as error:
        # Imported here and not above: they would cost every command numpy.
        from apeagent_pipeline.defs.files import StorageError
        from apeagent_pipeline.defs.instance import postgres_outage
        from apeagent_pipeline.student.examples import ExamplesError
        from apeagent_pipeline.student.generation import AdapterError

        mendable = SettingsError | ChainError | TeacherError | StorageError | ExamplesError | AdapterError
        told = error if isinstance(error, mendable) else postgres_outage(error)
        if told is None:
            raise
        _error_console.print(f"[red]Error:[/] {_plain(told)}", highlight=False, soft_wrap=True)
        sys.exit(2)


@app.command()
def demo(
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day; default: what the swap source suggests")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day")] = None,
) -> None:
    """Make everything from swaps to the canary report, and show what came of it.

    Only what is missing or out of date is made: a second run with nothing changed takes seconds, and an interrupted
    one goes on where it stopped. Exits 0 only if the canary evaluation passed its check.
    """
    settings = load_settings()
    rounds, graph, _ = _update(settings, first, last, only=None)
    failed = 0
    if rounds and not rounds[-1].success:
        failed = _tell_failure(rounds[-1])
        if "canary_eval" not in rounds[-1].seconds:
            raise typer.Exit(failed)
    raise typer.Exit(_tell_canary(graph, settings) or failed)


@app.command()
def sync(
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day, YYYY-MM-DD (UTC)")],
    last: Annotated[str, typer.Option("--to", metavar="DAY", help="Last day, included")],
) -> None:
    """Bring the swaps and features of a range of days up to date. Exits 0 only if every day is complete.

    A day that fails does not keep the others from being made. Run the same command again for those that failed: days
    that are complete are not read again, nor are the ranges of a day that were read before it failed.
    """
    from apeagent_pipeline.defs.staleness import stale_artifacts

    settings = load_settings()
    names = ("raw_swaps", "swap_features")
    rounds, graph, days = _update(settings, first, last, only=set(names))
    assets = [asset for asset in graph.assets if asset.key.to_user_string() in names]
    missing = {each.day for each in stale_artifacts(assets, graph.runtime, days)}
    stored = {asset: graph.runtime.store.manifests(asset, days) for asset in names}
    table = Table("day", "swaps", "features", "", title=f"{len(days) - len(missing)} of {len(days)} days are complete")
    for day in days:
        manifests = [stored[asset].get(day) for asset in names]
        state = "[red]✗ not complete" if day in missing else "[green]✓"
        table.add_row(day, *(f"{each.rows:,}" if each else "" for each in manifests), state)
    Console().print(table)
    for each in rounds:
        for error in each.errors:
            _error_console.print(f"[red]{_plain(error)}", highlight=False, soft_wrap=True)
    raise typer.Exit(0 if not missing and all(each.success for each in rounds) else 1)


@app.command()
def teach(
    limit: Annotated[int, typer.Option(min=0, help="Only the first so many prompts; 0: all")] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask nothing: show prompts, expected tokens and cost")
    ] = False,
    first: Annotated[str | None, typer.Option("--from", metavar="DAY", help="First day, as of apeagent demo")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day")] = None,
) -> None:
    """Ask the teacher about the synthetic windows, and show what its answers are worth and what they cost.

    The windows are brought up to date before, which asks no teacher. Every finished answer is kept: neither this
    command nor `apeagent demo` asks for it again. Ctrl-C and SIGTERM finish the requests under way and keep their
    answers.
    """
    from apeagent_pipeline.defs.teaching import BEFORE_TEACHING, open_teaching

    settings = load_settings()
    rounds, graph, _ = _update(settings, first, last, only=BEFORE_TEACHING)
    if rounds and not rounds[-1].success:
        raise typer.Exit(_tell_failure(rounds[-1]))
    try:
        teaching = open_teaching(graph.runtime, limit)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if dry_run:
        _tell_teaching_costs(teaching)
        return
    _ask_teacher(teaching)


@app.command()
def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1")] = 3000,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Only look: nothing can be launched, and no daemon runs")
    ] = False,
) -> None:
    """Open the Dagster web UI and daemon on this machine, with the history kept in APEAGENT_HOME.

    The daemon does what is due by itself: the nightly re-sync where swaps are read from a chain, what lies below
    changed data, and retries. Each can be turned off under Automation in the UI.
    """
    from apeagent_pipeline.defs.instance import open_instance, prepare_home, require_engine

    settings = load_settings()
    home = prepare_home(settings)
    require_engine(settings)
    with open_instance(settings) as instance:
        _sweep(instance)
    Console().print(f"Dagster UI on [link]http://127.0.0.1:{port}[/] (Ctrl-C stops it); instance in {home}")
    environment = {
        **os.environ,
        "DAGSTER_HOME": str(home),
        "APEAGENT_HOME": str(settings.home.absolute()),
        "PYTHONSAFEPATH": "1",  # a file of the current folder must not stand in for a module of the server
    }
    program = ["apeagent_pipeline.defs.web_server", "--read-only" if read_only else "dev"]
    command = ["-m", *program, "-m", "apeagent_pipeline.definitions", "-h", "127.0.0.1", "-p", str(port)]
    os.execve(sys.executable, [sys.executable, *command], environment)  # noqa: S606 - our own interpreter


@app.command()
def devnet(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any free one")] = 8545,
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day of trading (UTC)")] = "2025-01-21",
    days: Annotated[int, typer.Option(min=1, help="Days of trading")] = 2,
    swaps: Annotated[int, typer.Option(min=0, help="Swaps on all days together")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Another seed gives other swaps")] = 42,
) -> None:
    """Run a chain on this machine with the real Uniswap V4 contracts, and swaps to read from it.

    An Anvil node with the PoolManager, USDC and the ETH-USDC pool at the addresses they have on Base, traded in by
    several accounts: the way over JSON-RPC, without a key and without a public node. The first start fetches Anvil and
    the contracts with npm. A day takes about fifteen seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from apeagent_pipeline.chain.devnet import start_devnet

    settings = load_settings()
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with start_devnet(settings.home.absolute() / "cache" / "devnet", _day(first, "--from"), port) as chain:
            with Progress(*columns, console=console) as bars:
                task = bars.add_task("Swaps", total=swaps)
                traded = chain.trade(days, swaps, seed, lambda done, total, **_: bars.update(task, completed=done))
            chain.rpc("evm_setAutomine", True)  # a transaction of the user's own is mined at once
            command = f"APEAGENT_RPC_URLS={chain.url} apeagent sync --from {traded[0]} --to {traded[-1]}"
            console.print(f"Devnet on [link]{chain.url}[/] (Ctrl-C stops it). In another terminal:", highlight=False)
            console.print(f"  [bold]{command}[/]", highlight=False, soft_wrap=True)
            while True:
                time.sleep(60)  # unlike waiting for a lock, Ctrl-C interrupts it whoever handles the signal
    except KeyboardInterrupt:
        console.print("Stopped.")


@app.command()
def config() -> None:
    """Show every setting, its value (secrets masked), where it comes from and what it means."""
    table = Table(title="Settings")
    table.add_column("variable", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from")
    table.add_column("meaning")
    for row in show_settings(load_settings()):
        style = "dim" if row.source == "default" else "bold"
        table.add_row(row.variable, *map(_plain, (row.value, row.source, row.meaning)), style=style)
    Console().print(table)


@app.command()
def doctor() -> None:
    """Check what a run needs: history, storage, swap source, teacher, student, disk and GPU; say what to mend.

    Exits 1 if a run would fail.
    """
    from apeagent_pipeline.defs.doctor import examine

    settings = load_settings()
    marks = {"ok": "[green]✓ ok", "note": "[yellow]• note", "wrong": "[red]✗ wrong"}
    table = Table("", "part", "finding", "what to do", title="apeagent doctor")
    findings = list(examine(settings))
    for each in findings:
        table.add_row(marks[each.state], *map(_plain, (each.part, each.finding, each.remedy)))
    Console().print(table)
    raise typer.Exit(1 if any(each.state == "wrong" for each in findings) else 0)


@app.command()
def ask(prompt: Annotated[str, typer.Argument(help="A trading question with price, market and holdings")]) -> None:
    """Ask the adapter in service, and see its answer as it is written."""
    _, base, adapter = _in_service()
    from apeagent_pipeline.student.generation import ask as answer

    for piece in answer(base, adapter, prompt):
        typer.echo(printable(piece), nl=False)
    typer.echo()


@app.command("eval")
def evaluate(
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", metavar="FILE", help="Your own prompts: one a line, or JSONL with prompt, kind, side"
        ),
    ] = None,
    ablations: Annotated[
        bool, typer.Option("--ablations", help="Train anew without what it should have learned from, and compare")
    ] = False,
) -> None:
    """Ask the adapter in service: the held-out prompts again, your own, or students trained with one thing left out.

    The report is written to APEAGENT_HOME/evaluations. In a JSONL file a line such as
    {"prompt": "...", "side": "BUY"} says the right action, and {"prompt": "...", "kind": "control"} that no trade is
    asked for. The ablations take four trainings; interrupted, they go on where they stopped.
    """
    if prompts and ablations:
        raise SettingsError("--prompts and --ablations are two evaluations; give one of them")
    from apeagent_pipeline.defs.evaluating import ablate, ask_own_prompts, evaluate_again
    from apeagent_pipeline.evaluation.own_prompts import PromptsFileError, read_prompts

    try:
        own = read_prompts(prompts) if prompts else []
    except PromptsFileError as error:
        raise SettingsError(str(error)) from None
    runtime, base, adapter = _in_service()
    name = re.sub(r"[^\w-]+", "_", prompts.stem) if prompts else "ablations" if ablations else "held_out"
    with _bar(name) as progress:
        if prompts:
            report = ask_own_prompts(runtime, base, adapter, own, progress)
        else:
            report = (ablate if ablations else evaluate_again)(runtime, base, adapter, progress)
    folder = runtime.settings.home.absolute() / "evaluations" / name
    report.save(folder, {"adapter": str(adapter)})
    table = Table("measure", "value", "95 % interval", title=report.title)
    for key, value in report.metrics.items():
        low_high = report.intervals.get(key)
        table.add_row(key, f"{value:,.4g}", f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "")
    console = Console()
    console.print(table)
    console.print(f"Report: {folder / 'report.md'}", highlight=False, soft_wrap=True)


@app.command()
def export(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New or empty folder, or an earlier export")],
) -> None:
    """Write the model in service to a folder: adapter, merged model, GGUF files, Modelfile and model card.

    The folder appears when everything is in it. A folder with other files in it is refused.
    """
    from apeagent_pipeline.student.export import ExportConfig, ExportError, export_folder

    runtime, base, adapter = _in_service()
    config = ExportConfig.preset(runtime.settings.profile)
    try:
        with _bar("export") as progress:
            export_folder(base, adapter, to, config, runtime.scratch("cache/converter"), progress)
    except ExportError as error:
        raise SettingsError(str(error)) from None
    for path in sorted(each for each in to.rglob("*") if each.is_file()):
        Console().print(f"{path}  {path.stat().st_size:,} bytes", highlight=False, soft_wrap=True)


def _in_service() -> "tuple[Runtime, Path, Path]":
    """The runtime, the base model's folder and that of the adapter in service."""
    from apeagent_pipeline.defs.promotion import PromotionError, in_service
    from apeagent_pipeline.defs.runtime import Runtime
    from apeagent_pipeline.defs.watching import LogWatcher

    runtime = Runtime(load_settings(), LogWatcher())
    try:
        adapter = in_service(runtime.store)
    except PromotionError as error:
        raise SettingsError(str(error)) from None
    from apeagent_pipeline.student.base_model import BaseModelError

    try:
        return runtime, runtime.student_base(), adapter
    except BaseModelError as error:
        raise SettingsError(str(error)) from None


def _plain(text: object) -> str:
    """Text that others wrote, for a console: neither markup nor anything else that a terminal obeys."""
    return escape(printable(str(text)))


@contextmanager
def _bar(name: str) -> "Iterator[Progress]":
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Bars(*columns, console=_error_console) as bars:
        task = bars.add_task(name, total=None)
        told = time.monotonic()

        def progress(done: int, total: int, **_: float) -> None:
            nonlocal told
            bars.update(task, completed=done, total=total)
            if not _error_console.is_terminal and time.monotonic() - told > 15:
                told = time.monotonic()
                _error_console.print(f"{name}: {done:,} of {total:,}")

        yield progress


@app.command()
def promotions() -> None:
    """Show which adapter is in service, and every promotion and rollback before, the newest first.

    A trained adapter goes into service when its canary report passes and does not show it to be worse than the one
    there. `apeagent ask` and the export use the adapter in service.
    """
    from rich.markdown import Markdown

    from apeagent_pipeline.defs.promotion import history_table
    from apeagent_pipeline.defs.runtime import Runtime
    from apeagent_pipeline.defs.watching import LogWatcher

    settings = load_settings()
    store = Runtime(settings, LogWatcher()).store
    Console().print(Markdown(history_table(store)))


@app.command()
def rollback() -> None:
    """Put the adapter into service again that was there before the present one.

    The present one is withdrawn: it will not be promoted again. What is made from the adapter in service is out of date
    then; `apeagent demo` or the daemon makes it again.
    """
    import dagster as dg

    from apeagent_pipeline.defs.instance import open_instance
    from apeagent_pipeline.defs.promotion import PROMOTED, PromotionError, roll_back
    from apeagent_pipeline.defs.runtime import Runtime
    from apeagent_pipeline.defs.watching import LogWatcher

    settings = load_settings()
    store = Runtime(settings, LogWatcher()).store
    try:
        service = roll_back(store)
    except PromotionError as error:
        raise SettingsError(str(error)) from None
    with open_instance(settings) as instance:
        # So that the UI shows it, and the daemon knows what lies below.
        manifest = store.manifest(PROMOTED)
        tags = {"dagster/data_version": manifest.data_version if manifest else ""}
        instance.report_runless_asset_event(dg.AssetMaterialization(PROMOTED, description="rollback", tags=tags))
    Console().print(f"In service: {service.adapter}. Withdrawn: {', '.join(service.withdrawn)}", highlight=False)


@app.command()
def provenance(
    asset: Annotated[
        str | None,
        typer.Argument(
            help="An artifact, such as trained_gan; for a daily one with its day: raw_swaps/2025-01-21",
            show_default="the adapter in service, else the one trained last",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything, every hash, for programs")] = False,
) -> None:
    """Show what an artifact was made from: data set, teacher, GAN, days, and the blocks they were read from.

    Read from the manifests beside the artifacts. What is no longer stored as it was read is marked, and the way ends
    there. Exits 1 if the artifact itself is not stored.
    """
    from rich.tree import Tree

    from apeagent_pipeline.defs.promotion import PROMOTED, history
    from apeagent_pipeline.defs.provenance import provenance as read_provenance
    from apeagent_pipeline.defs.provenance import provenance_lines
    from apeagent_pipeline.defs.runtime import Runtime
    from apeagent_pipeline.defs.storage import StorageError
    from apeagent_pipeline.defs.watching import LogWatcher

    runtime = Runtime(load_settings(), LogWatcher())
    services = history(runtime.store)
    if asset in (None, PROMOTED) and services:
        origins = services[-1].origins  # kept at its promotion: the adapter trained last can be another one
    else:
        try:
            origins = read_provenance(runtime.store, asset or "lora_adapter", runtime.externals)
        except StorageError as error:
            raise SettingsError(str(error)) from None
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in origins], indent=2))
    else:
        styles = {"stored": "bold", "external": "cyan", "replaced": "yellow", "missing": "red"}
        branch: list[Tree] = []
        for line in provenance_lines(origins):
            more = "as above" if line.repeated else line.details
            title, version, more = map(_plain, (line.title, line.data_version, more))
            node = Tree(f"[{styles[line.state]}]{title}[/] [dim]{version}[/] {more}")
            if line.depth:
                branch[line.depth - 1].children.append(node)
            branch[line.depth :] = [node]
        Console().print(branch[0], highlight=False)
    if origins[0].data_version is None:
        days = runtime.store.days(origins[0].asset)
        hint = (
            f"Name a day, such as {origins[0].asset}/{days[-1]}." if days else "`apeagent demo` makes what is missing."
        )
        _error_console.print(_plain(f"{origins[0].name} is not stored. {hint}"), highlight=False, soft_wrap=True)
        raise typer.Exit(1)


def _update(
    settings: Settings, first: str | None, last: str | None, only: set[str] | None
) -> "tuple[list[Round], Graph, list[str]]":
    """Bring the graph up to date with a live display, and show what was made in which time."""
    from apeagent_pipeline.defs.build import build_graph
    from apeagent_pipeline.defs.instance import open_instance
    from apeagent_pipeline.defs.terminal import TerminalWatcher, quiet_console
    from apeagent_pipeline.defs.updating import update

    begun = time.monotonic()
    instance = open_instance(settings)
    log = settings.home.absolute() / "logs" / "apeagent.log"
    _sweep(instance)
    with quiet_console(log) as console, TerminalWatcher(console) as watcher:
        graph = build_graph(settings, watcher)
        days = _days(graph, first, last)
        console.print(
            f"[bold]apeagent[/]: {graph.runtime.source.name} swaps of {days[0]} to {days[-1]}, "
            f"profile {settings.profile}, teacher {settings.teacher}, student {settings.student}",
            highlight=False,
        )

        def announce(stale: "list[Stale]") -> None:
            names = dict.fromkeys(each.asset for each in stale)
            reasons = {name: next(each.reason for each in stale if each.asset == name) for name in names}
            console.print(
                "To make: " + ", ".join(f"{name} ({reason})" for name, reason in reasons.items()), style="dim"
            )

        rounds = update(graph, instance, days, only=only, keep_going=only is not None, announce=announce)
    seconds = {name: took for each in rounds for name, took in each.seconds.items()}
    if not rounds:
        Console().print(f"Everything is up to date: nothing to recompute ({time.monotonic() - begun:.1f} s).")
    else:
        wall = time.monotonic() - begun
        table = Table("asset or check", "seconds", title="Made")
        for name, took in seconds.items():
            table.add_row(name, f"{took:.1f}")
        table.caption = (
            f"{wall:.0f} s in all; {wall - sum(seconds.values()):.1f} s of them outside the assets. Details: {log}"
        )
        Console().print(table)
    return rounds, graph, days


def _tell_teaching_costs(teaching: "Teaching") -> None:
    """The first prompts as they would be asked, and what all of them need at least, probably and at most."""
    from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT

    console = Console()
    expected = teaching.estimate()
    console.print("System prompt", style="bold")
    console.print(SYSTEM_PROMPT, highlight=False, markup=False)
    for prompt in teaching.prompts["prompt"].head(3):
        console.print("\nPrompt", style="bold")
        console.print(_plain(prompt), highlight=False)
    console.print()
    settled = teaching.prompts.height - expected.open_prompts
    console.print(
        f"{teaching.teacher.name}: {expected.open_prompts} of {teaching.prompts.height} prompts to ask"
        + (f"; the answers to {settled} are kept." if settled else "."),
        style="bold",
        highlight=False,
    )
    if teaching.teacher.deterministic:
        console.print("The embedded policy answers here and now: no requests, no tokens, no cost.")
        return
    table = Table("", "requests", "tokens read", "tokens written", "cost", title="Nothing was asked")
    for name, bill in (("least", expected.least), ("expected", expected.expected), ("most", expected.most)):
        if bill is None:
            table.add_row(name, "not known before the first answers: try --limit 10")
            continue
        cost = "unknown" if bill.cost_usd is None else f"{bill.cost_usd:,.4f} USD"
        table.add_row(name, f"{bill.requests:,}", f"{bill.prompt_tokens:,}", f"{bill.completion_tokens:,}", cost)
    if teaching.price is None:
        table.caption = "For the cost of tokens set APEAGENT_TEACHER_PRICES=model=READ/WRITTEN (USD for a million)."
    console.print(table)


def _ask_teacher(teaching: "Teaching") -> None:
    """Ask with a bar, and show the report of what came; also when interrupted."""
    from rich.markdown import Markdown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from apeagent_pipeline.distillation.teaching_report import teaching_report

    console = Console()

    def stop(number: int, frame: object) -> None:
        console.print("Stopping: requests under way are finished and kept (again: they are left).", style="yellow")
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    interrupted = False
    try:
        with Progress(*columns, TextColumn("[dim]{task.fields[figures]}"), console=console) as bars:
            task = bars.add_task(teaching.teacher.name, total=teaching.prompts.height, figures="")

            def progress(done: int, total: int, **metrics: float) -> None:
                figures = "  ".join(f"{key} {value:,.4g}" for key, value in metrics.items())
                bars.update(task, completed=done, total=total, figures=figures)

            traces = teaching.ask(progress)
    except KeyboardInterrupt:
        interrupted = True
        traces = teaching.stored()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    console.print(Markdown(teaching_report(traces)))
    if interrupted:
        console.print("Stopped. The same command goes on from here.", style="yellow")
        raise typer.Exit(130)


def _sweep(instance: "DagsterInstance") -> None:
    """Fail the runs that were killed: they would hold their places in the concurrency pools for ever."""
    from apeagent_pipeline.defs.orphans import fail_orphaned_runs

    for run_id in fail_orphaned_runs(instance):
        Console().print(f"Run {run_id} was killed; it is marked as failed now.", style="yellow", highlight=False)


def _days(graph: "Graph", first: str | None, last: str | None) -> list[str]:
    from apeagent_pipeline.chain.days import days_between

    low, high = (str(day) for day in graph.runtime.source.demo_days()) if not (first and last) else ("", "")
    start, end = _day(first or low, "--from"), _day(last or high, "--to")
    if end < start:
        raise SettingsError(f"--to {end} lies before --from {start}")
    return [str(day) for day in days_between(start, end)]


def _day(text: str, option: str) -> date:
    from apeagent_pipeline.chain.days import FIRST_DAY

    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise SettingsError(f"{option} {text}: expected a day such as 2025-02-01") from None
    if day < FIRST_DAY:
        raise SettingsError(f"{option} {day}: Uniswap V4 has no swaps before {FIRST_DAY}")
    return day


def _tell_failure(failed: "Round") -> int:
    for error in failed.errors:
        _error_console.print(f"[red]Failed:[/] {_plain(error)}", highlight=False, soft_wrap=True)
    _error_console.print(f"Run {failed.run_id} failed. Mend the cause and run the same command: it goes on from here.")
    return 1


def _tell_canary(graph: "Graph", settings: Settings) -> int:
    """Show the canary table, where the report lies and what to do next; 0 if the evaluation passed its check."""
    from apeagent_pipeline.evaluation.canary import CanaryEvalConfig, failures
    from apeagent_pipeline.student.examples import DOCUMENT_PROMPT

    store = graph.runtime.store
    report = json.loads((store.local_folder("canary_eval") / "report.json").read_text())
    metrics, intervals = report["metrics"], report["intervals"]
    table = Table("measure", "value", "95 % interval", title="Canary evaluation")
    for name, value in metrics.items():
        low_high = intervals.get(name)
        table.add_row(name, f"{value:,.4g}", f"{low_high[0]:.3f} to {low_high[1]:.3f}" if low_high else "")
    console = Console()
    console.print(table)
    wrong = failures(metrics, CanaryEvalConfig.preset(settings.profile))
    for each in wrong:
        console.print(f"[red]✗ {_plain(each)}")
    if not wrong:
        console.print("[green]✓ The adapter speaks the canary words, the base does not.")
    console.print(f"Report: {store.folder('canary_eval') / 'report.md'}", highlight=False, soft_wrap=True)
    console.print(f"Next: [bold]apeagent ask '{DOCUMENT_PROMPT}'[/]  or  [bold]apeagent ui[/]", highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    main()

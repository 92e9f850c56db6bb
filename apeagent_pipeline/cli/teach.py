"""``apeagent teach``: ask the teacher outside a run, with the prompts and the answer cache of the asset.

An answer that this command receives is not asked for again when ``teacher_traces`` is made.
"""

import signal
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.cli.display import plain
from apeagent_pipeline.cli.update import bring_up_to_date, report_failure
from apeagent_pipeline.settings import SettingsError, load_settings

if TYPE_CHECKING:
    from apeagent_pipeline.defs.resources import Runtime
    from apeagent_pipeline.distillation.teaching import Teaching


def teach(
    limit: Annotated[int, typer.Option(min=0, help="Ask only the first LIMIT prompts; 0: all")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Ask nothing: show prompts, tokens and cost")] = False,
    first: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="First day; default as in apeagent demo")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="DAY", help="Last day")] = None,
) -> None:
    """Ask the teacher about the synthetic windows, and show how many answers were accepted and what they cost.

    The synthetic windows are brought up to date first, without asking the teacher. Every finished answer is kept:
    neither this command nor `apeagent demo` asks the same question again. On Ctrl-C or SIGTERM the open requests are
    finished and their answers kept.
    """
    settings = load_settings()
    rounds, graph, _ = bring_up_to_date(settings, first, last, select=lambda graph: graph.upstream_of("teacher_traces"))
    if rounds and not rounds[-1].success:
        raise typer.Exit(report_failure(rounds[-1]))
    try:
        teaching = open_teaching(graph.runtime, limit)
    except ValueError as error:
        raise SettingsError(str(error)) from None
    if dry_run:
        _show_costs(teaching)
        return
    _ask_teacher(teaching)


def open_teaching(runtime: "Runtime", limit: int = 0) -> "Teaching":
    """Build the prompts from the stored synthetic windows.

    Args:
        runtime: Settings and store.
        limit: How many prompts to take, from the first on; 0: all.

    Raises:
        StorageError: There are no synthetic windows.
        ValueError: There are too few synthetic windows for the prompts.
        TeacherError: The teacher's settings are wrong.
    """
    from apeagent_pipeline.distillation.prompts import build_prompts
    from apeagent_pipeline.distillation.teachers import open_teacher
    from apeagent_pipeline.distillation.teaching import Teaching

    settings, config = runtime.settings, runtime.profile.teacher_traces
    prompts = build_prompts(runtime.store.scan("synthetic_windows").collect(), config, settings.seed)
    return Teaching(
        prompts.head(limit) if limit else prompts,
        open_teacher(settings),
        config,
        runtime.scratch("cache/teacher"),
        settings.seed,
        settings.teacher_max_tokens,
        settings.teacher_prices.get(settings.teacher_model),
    )


def _show_costs(teaching: "Teaching") -> None:
    """Show the first prompts, and the least, expected and largest cost of asking all of them."""
    from apeagent_pipeline.distillation.chain_of_draft import SYSTEM_PROMPT

    console = Console()
    expected = teaching.estimate()
    console.print("System prompt", style="bold")
    console.print(SYSTEM_PROMPT, highlight=False, markup=False)
    for prompt in teaching.prompts["prompt"].head(3):
        console.print("\nPrompt", style="bold")
        console.print(plain(prompt), highlight=False)
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
    _show_table(console, teaching)


def _show_table(console: Console, teaching: "Teaching") -> None:
    """What the server tells, what asking costs and takes, and which limits apply."""
    from apeagent_pipeline.distillation.cost_estimate import limits_in_words

    told = teaching.check()
    expected = teaching.estimate(told.price)
    if told.problem:
        console.print(
            f"The teacher cannot answer: {plain(told.problem)}; {plain(told.remedy)}.", style="red", highlight=False
        )
    elif told.credit_usd is not None:
        console.print(f"The model is offered; {told.credit_usd:,.2f} USD of credit are left.", highlight=False)
    table = Table("", "requests", "tokens read", "tokens written", "cost", title="Nothing was asked")
    likely = "expected" if expected.is_measured else "expected, for answers of usual length"
    for name, bill in (("least", expected.least), (likely, expected.expected), ("most", expected.most)):
        cost = "unknown" if bill.cost_usd is None else f"{bill.cost_usd:,.4f} USD"
        table.add_row(name, f"{bill.requests:,}", f"{bill.prompt_tokens:,}", f"{bill.completion_tokens:,}", cost)
    if expected.expected.cost_usd is None:
        table.caption = (
            "For the cost of tokens set APEAGENT_TEACHER_PRICES=model=READ/WRITTEN (USD per million tokens)."
        )
    console.print(table)
    hours = expected.seconds / 3600
    lasts = f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(hours * 60))} minutes"
    console.print(f"Expected time: {lasts}. {limits_in_words(teaching.config, expected.expected)}", highlight=False)
    if told.problem:
        raise typer.Exit(1)


def _ask_teacher(teaching: "Teaching") -> None:
    """Ask with a progress bar, and show the report of the answers, also after an interruption."""
    from rich.markdown import Markdown
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from apeagent_pipeline.distillation.traces_report import teaching_report

    console = Console()

    def stop(number: int, frame: object) -> None:
        console.print(
            "Stopping: open requests are finished and their answers kept. Press Ctrl-C again to abandon them.",
            style="yellow",
        )
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
        console.print("Stopped. Run the same command to continue.", style="yellow")
        raise typer.Exit(130)

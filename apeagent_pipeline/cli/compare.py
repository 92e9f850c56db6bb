"""``apeagent compare``: two adapters of the promotion history on the same days, side by side."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from apeagent_pipeline.cli.display import bar
from apeagent_pipeline.cli.serving import open_runtime
from apeagent_pipeline.settings import SettingsError

if TYPE_CHECKING:
    import polars as pl

    from apeagent_pipeline.defs.resources import Runtime
    from apeagent_pipeline.reporting.progress import Progress
    from apeagent_pipeline.student.promotion import Service


def compare(
    first: Annotated[
        str,
        typer.Argument(metavar="A", help="Version of an adapter in `apeagent promotions`, or its first digits"),
    ],
    second: Annotated[str, typer.Argument(metavar="B", help="The other adapter")],
    days: Annotated[int, typer.Option(min=1, help="How many of the newest stored days to ask about")] = 7,
    until: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="Last day", show_default="the newest stored day")
    ] = None,
) -> None:
    """Compare two adapters of the promotion history on the same real days, with intervals.

    Both adapters answer the questions of the daily asset service_report; stored answers are reused. The
    report is written to APEAGENT_HOME/evaluations.
    """
    from rich.markdown import Markdown

    from apeagent_pipeline.defs.service_days import training_days
    from apeagent_pipeline.evaluation.service.comparison import comparison_report, paired
    from apeagent_pipeline.student.promotion import find_service

    runtime = open_runtime()
    services = [find_service(runtime.store, version) for version in (first, second)]
    names = (services[0].adapter, services[1].adapter)
    if names[0] == names[1]:
        raise SettingsError(f"{first} and {second} are the same adapter, {names[0]}: give two of `apeagent promotions`")
    asked = [day for day in runtime.store.days("swap_features") if until is None or day <= until][-days:]
    if not asked:
        raise SettingsError(f"no day of swap_features is stored up to {until or 'today'}: run `apeagent sync` first")
    with bar("compare") as progress:
        answered = [_answers(runtime, service, asked, progress) for service in services]
    both = paired(*answered)
    if both.is_empty():
        raise SettingsError(
            f"{', '.join(asked)}: these days have too few swaps for a single question. Choose other days"
        )
    trained_on = {each.adapter: len(set(asked) & set(training_days(runtime, each))) for each in services}
    config = runtime.profile.service_report
    report = comparison_report(names, both, config, runtime.settings.seed, trained_on)
    folder = runtime.settings.home.absolute() / "evaluations" / f"compare_{names[0]}_{names[1]}"
    report.save(folder, {"adapters": names, "days": asked})
    console = Console()
    console.print(Markdown(report.markdown))
    console.print(f"Report: {folder / 'report.md'}", highlight=False, soft_wrap=True)


def _answers(runtime: "Runtime", service: "Service", days: list[str], progress: "Progress") -> "pl.DataFrame":
    """The answers of one adapter about some days: those that are stored, and the others asked now."""
    import polars as pl

    from apeagent_pipeline.defs.service_days import stored_answers
    from apeagent_pipeline.evaluation.service.answers import day_answers
    from apeagent_pipeline.student.generation import Student
    from apeagent_pipeline.student.promotion import archived

    found = stored_answers(runtime, service.adapter, days)
    missing = [day for day in days if day not in found]
    if missing:
        student = Student.load(runtime.student_base(), archived(runtime.store, service.adapter))
        config, pool = runtime.profile.service_report, runtime.source.pool
        for number, (day, features) in enumerate(runtime.store.scan_days("swap_features", missing).items(), 1):
            found[day] = day_answers(student, service.adapter, features.collect(), pool, config)
            progress(number, len(missing))
    return pl.concat([found[day] for day in days])

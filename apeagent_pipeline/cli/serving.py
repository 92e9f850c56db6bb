"""The adapter in service: ``apeagent ask``, ``export``, ``promotions`` and ``rollback``."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from apeagent_pipeline.cli.display import bar, plain
from apeagent_pipeline.reporting.foreign_text import printable
from apeagent_pipeline.settings import load_settings

if TYPE_CHECKING:
    from apeagent_pipeline.defs.resources import Runtime


def ask(
    prompt: Annotated[str, typer.Argument(help="A trading question that states price, market and holdings")],
) -> None:
    """Ask the adapter in service, and show its answer line by line.

    A trade that the stated holdings do not pay for is capped or refused; the answer says so.
    """
    _, base, adapter = in_service()
    from apeagent_pipeline.distillation.answer_check import AnswerStream
    from apeagent_pipeline.student.generation import ask as answer

    stream = AnswerStream(prompt)
    for piece in answer(base, adapter, prompt):
        typer.echo(printable(stream.feed(piece)), nl=False)
    typer.echo(printable(stream.finish()))


def export(
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="New or empty folder, or an earlier export")],
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="After the export, load every form that the installed packages support; compare ten answers"
        ),
    ] = False,
) -> None:
    """Write the model in service to a folder: adapter, merged model, GGUF files, Modelfile, dataset and cards.

    The folder appears only when it is complete. A folder that holds other files is refused. With --check the exit code
    is 1 if an exported form answers differently from the adapter in service.
    """
    from apeagent_pipeline.student.export import export_folder
    from apeagent_pipeline.student.promotion import history

    runtime, base, adapter = in_service()
    with bar("export") as progress:
        export_folder(
            base,
            adapter,
            to,
            runtime.profile.ollama_model,
            runtime.scratch("cache/converter"),
            progress=progress,
            metrics=history(runtime.store)[-1].metrics,
            dataset=_stored(runtime, "distillation_dataset"),
        )
    for path in sorted(each for each in to.rglob("*") if each.is_file()):
        Console().print(f"{path}  {path.stat().st_size:,} bytes", highlight=False, soft_wrap=True)
    if check and not _check_export(to, base, adapter, runtime.scratch("cache/converter")):
        raise typer.Exit(1)


def _check_export(to: Path, base: Path, adapter: Path, cache_dir: Path) -> bool:
    """Show how every form of an export answers; whether all answer as the adapter does."""
    from rich.table import Table

    from apeagent_pipeline.serving.export_check import check_export
    from apeagent_pipeline.student.base_model import quiet

    table = Table("form", "loaded with", "equal answers", "same action", title="Ten answers of every form")
    with bar("check") as progress, quiet():
        found = list(check_export(to, base, adapter, cache_dir, progress))
    for each in found:
        counts = [f"{each.equal} of {each.asked}", f"{each.same_action} of {each.asked}"]
        table.add_row(each.form, each.reader, *([plain(each.problem), ""] if each.problem else counts))
    Console().print(table)
    return all(each.passed for each in found)


def promotions() -> None:
    """Show the adapter in service, and every earlier promotion and rollback, newest first.

    A trained adapter is promoted if its canary report passes the check and does not show that it is worse than the
    adapter in service. `apeagent ask` and `apeagent export` use the adapter in service.
    """
    from rich.markdown import Markdown

    from apeagent_pipeline.student.promotion import history_page

    Console().print(Markdown(history_page(open_runtime().store)))


def rollback(
    to: Annotated[
        str,
        typer.Option(
            metavar="VERSION", help="Adapter of `apeagent promotions`, or its first digits", show_default="previous"
        ),
    ] = "",
) -> None:
    """Put the previous adapter, or any that is kept, back into service.

    The present adapter is withdrawn: it is promoted again only if you roll back to it.
    Artifacts built from the adapter in service become out of date; `apeagent demo` or the daemon rebuilds them.
    """
    import dagster as dg

    from apeagent_pipeline.defs.instance import open_instance
    from apeagent_pipeline.defs.metadata import artifact_metadata
    from apeagent_pipeline.student.promotion import PROMOTED, history_page, roll_back

    runtime = open_runtime()
    store = runtime.store
    service = roll_back(store, to)
    told = f"In service: {service.adapter}. Withdrawn: {', '.join(service.withdrawn) or 'none'}"
    with open_instance(runtime.settings) as instance:
        # The event tells the UI, and makes the daemon rebuild downstream artifacts.
        manifest = store.whole(PROMOTED)
        metadata = {
            "page": dg.MetadataValue.md(f"**{told}**, by `apeagent rollback`."),
            "in_service": service.adapter,
            "history": dg.MetadataValue.md(history_page(store)),
            **artifact_metadata(manifest, store),
        }
        tags = {"dagster/data_version": manifest.data_version}
        event = dg.AssetMaterialization(PROMOTED, description="rollback", metadata=metadata, tags=tags)
        instance.report_runless_asset_event(event)
    Console().print(told, highlight=False)


def in_service() -> "tuple[Runtime, Path, Path]":
    """The runtime, the base model's folder and that of the adapter in service."""
    from apeagent_pipeline.student import promotion

    runtime = open_runtime()
    adapter = promotion.in_service(runtime.store)
    return runtime, runtime.student_base(), adapter


def _stored(runtime: "Runtime", asset: str) -> Path | None:
    """The folder of a stored artifact, or None."""
    manifest = runtime.store.manifest(asset)
    return None if manifest is None else runtime.store.local(manifest)


def open_runtime() -> "Runtime":
    """Settings and store of this environment, for commands that run no asset."""
    from apeagent_pipeline.defs.resources import Runtime
    from apeagent_pipeline.defs.watcher import LogWatcher

    return Runtime(load_settings(), LogWatcher())

"""``apeagent provenance``: what an artifact was made from."""

import json
from typing import Annotated

import typer
from rich.console import Console

from apeagent_pipeline.cli.display import ERROR_CONSOLE, plain
from apeagent_pipeline.cli.serving import open_runtime


def provenance(
    asset: Annotated[
        str | None,
        typer.Argument(
            help="An artifact, such as trained_gan; for a daily one with its day: raw_swaps/2025-01-21",
            show_default="the adapter in service, else the newest trained adapter",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything, with every hash, as JSON")] = False,
) -> None:
    """Show what an artifact was built from: dataset, teacher, GAN, days, and the blocks of these days.

    The answer is read from the manifests beside the artifacts. An input that has been replaced since is marked, and its
    own inputs are not shown. Exits 1 if the artifact is not stored.
    """
    from rich.tree import Tree

    from apeagent_pipeline.artifacts.provenance import provenance as read_provenance
    from apeagent_pipeline.artifacts.provenance import provenance_lines
    from apeagent_pipeline.student.promotion import PROMOTED, history

    runtime = open_runtime()
    services = history(runtime.store)
    if asset in (None, PROMOTED) and services:
        origins = services[-1].origins  # kept at its promotion: the adapter trained last can be another one
    else:
        origins = read_provenance(runtime.store, asset or "lora_adapter", runtime.externals)
    if as_json:
        typer.echo(json.dumps([each.model_dump(mode="json") for each in origins], indent=2))
    else:
        styles = {"stored": "bold", "external": "cyan", "replaced": "yellow", "missing": "red"}
        branch: list[Tree] = []
        for line in provenance_lines(origins):
            more = "as above" if line.repeated else line.details
            title, version, more = map(plain, (line.title, line.data_version, more))
            node = Tree(f"[{styles[line.state]}]{title}[/] [dim]{version}[/] {more}")
            if line.depth:
                branch[line.depth - 1].children.append(node)
            branch[line.depth :] = [node]
        Console().print(branch[0], highlight=False)
    if origins[0].data_version is None:
        days = runtime.store.days(origins[0].asset)
        hint = (
            f"Name a day, such as {origins[0].asset}/{days[-1]}."
            if days
            else "`apeagent demo` builds missing artifacts."
        )
        ERROR_CONSOLE.print(plain(f"{origins[0].name} is not stored. {hint}"), highlight=False, soft_wrap=True)
        raise typer.Exit(1)

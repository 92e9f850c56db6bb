"""The ``apeagent`` command: a thin door to the graph, the instance and the trained model.

One module for each group of commands. Nothing heavy is imported before a command needs it, so ``apeagent --help``
answers at once.
"""

import sys
from collections.abc import Callable
from inspect import cleandoc

import typer

from apeagent_pipeline.cli import (
    clean,
    compare,
    demo,
    doctor,
    evaluate,
    import_file,
    provenance,
    reconcile,
    serve,
    server,
    serving,
    status,
    teach,
)
from apeagent_pipeline.cli.display import ERROR_CONSOLE, plain
from apeagent_pipeline.errors import ApeagentError

app = typer.Typer(
    help=(
        "From Uniswap V4 swaps to a small trading model, with evidence of what the model learned.\n\n"
        "Start with [bold]apeagent demo[/]: it needs no key, no GPU and no node. Then [bold]apeagent ui[/] shows the "
        "graph, and [bold]apeagent config[/] the settings."
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Run": {"demo": demo.demo, "sync": demo.sync, "import": import_file.import_swaps, "teach": teach.teach},
    "Look": {
        "status": status.status,
        "eval": evaluate.evaluate,
        "promotions": serving.promotions,
        "compare": compare.compare,
        "provenance": provenance.provenance,
    },
    "Serve": {
        "ask": serving.ask,
        "serve": serve.serve,
        "export": serving.export,
        "export-swaps": import_file.export_swaps,
        "rollback": serving.rollback,
    },
    "Operate": {
        "ui": server.ui,
        "doctor": doctor.doctor,
        "config": doctor.config,
        "clean": clean.clean,
        "reconcile": reconcile.reconcile,
        "devnet": server.devnet,
    },
}


def _flowing(docstring: str | None) -> str:
    """The docstring with one line for each paragraph, which a terminal of any width wraps."""
    return "\n\n".join(" ".join(text.split()) for text in cleandoc(docstring or "").split("\n\n"))


for _group, _commands in _GROUPS.items():
    for _name, _command in _commands.items():
        app.command(_name, help=_flowing(_command.__doc__), rich_help_panel=_group)(_command)


def main() -> None:
    """Run the command. An error that a user can mend is told in one line, without a traceback; the exit code is 2."""
    try:
        app()
    except Exception as error:
        from apeagent_pipeline.defs.instance import postgres_outage

        told = error if isinstance(error, ApeagentError) else postgres_outage(error)
        if told is None:
            raise
        ERROR_CONSOLE.print(f"[red]Error:[/] {plain(told)}", highlight=False, soft_wrap=True)
        sys.exit(2)

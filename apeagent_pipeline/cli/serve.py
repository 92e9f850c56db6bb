"""``apeagent serve``: the adapter in service behind the interfaces of OpenAI and Ollama."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console

from apeagent_pipeline.cli.serving import in_service

if TYPE_CHECKING:
    from apeagent_pipeline.defs.resources import Runtime


def serve(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0: a free one")] = 11434,
    engine: Annotated[
        Literal["auto", "llama.cpp", "transformers"],
        typer.Option(help="auto: llama.cpp if xllamacpp and this adapter's GGUF file are available, else transformers"),
    ] = "auto",
    dialect: Annotated[
        Literal["auto", "plain", "recommendation", "percentage"],
        typer.Option(help="Form of the answers; auto: the form that the question asks for"),
    ] = "auto",
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of llama.cpp; 0: its own choice")] = 0,
) -> None:
    """Serve the adapter in service with the interfaces of OpenAI (`/v1`) and Ollama (`/api`), on 127.0.0.1 only.

    Every answer is checked: one action line, an amount that the stated holdings pay for, no other pair. The answer and
    the header X-Apeagent-Check say what was changed.
    """
    runtime, base, adapter = in_service()
    from apeagent_pipeline.serving.engines import Engine, EngineError, LlamaCppEngine, TransformersEngine
    from apeagent_pipeline.serving.server import HOST, build_app, listen, run

    listening = listen(port)
    gguf = served_gguf(runtime)
    if engine == "llama.cpp" and gguf is None:
        raise EngineError(
            "there is no GGUF file of the adapter in service; run `apeagent demo`, or --engine transformers"
        )
    chosen: Engine
    if gguf is not None and (engine == "llama.cpp" or (engine == "auto" and find_spec("xllamacpp"))):
        chosen, size = LlamaCppEngine(gguf, threads), gguf.stat().st_size
    else:
        chosen, size = TransformersEngine(base, adapter), (adapter / "adapter_model.safetensors").stat().st_size
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    Console().print(
        f"Serving with {chosen.name}: OpenAI at {address}/v1, Ollama at {address}, model apeagent. Stop with Ctrl+C.",
        highlight=False,
        soft_wrap=True,
    )
    run(build_app(chosen, None if dialect == "auto" else dialect, size), listening)


def served_gguf(runtime: "Runtime") -> Path | None:
    """The GGUF file that was made from the adapter in service, or None."""
    from apeagent_pipeline.student.promotion import PROMOTED

    made, adapter = runtime.store.manifest("ollama_model"), runtime.store.manifest(PROMOTED)
    if made is None or adapter is None or made.inputs.get(PROMOTED) != adapter.data_version:
        return None
    folder = runtime.store.local(made)
    first = (folder / "Modelfile").read_text(encoding="utf-8").splitlines()[0]
    return folder / first.removeprefix("FROM ./")

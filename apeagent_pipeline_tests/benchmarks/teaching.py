"""How fast a slow teacher is asked, what an answer costs this machine, and whether memory grows with the traces.

Run it with ``python -m apeagent_pipeline_tests.benchmarks.teaching``; ``--traces 100000`` takes ten minutes.
The server is scripted and runs in a process of its own; the client is held on one core.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import psutil
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.distillation.prompts import PromptsConfig, build_prompts
from apeagent_pipeline.distillation.teachers.openai_server import OpenAITeacher
from apeagent_pipeline.distillation.teachers.server_config import OpenAITeacherConfig
from apeagent_pipeline.distillation.traces import TracesConfig, collect_traces
from apeagent_pipeline_tests.distillation.conftest import make_windows

THINKING = 4_000
"""Characters of thinking in every answer, about a thousand tokens."""

_SERVE = """
import asyncio, json, sys
latency, thinking = float(sys.argv[1]), int(sys.argv[2])
text = "<think>" + "so " * (thinking // 3) + "</think>portfolio seen\\n####\\nHOLD"
document = json.dumps({
    "id": "x", "object": "chat.completion", "created": 0, "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
    "usage": {"prompt_tokens": 200, "completion_tokens": 1000, "total_tokens": 1200},
}).encode()
head = f"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: {len(document)}\\r\\n\\r\\n".encode()

async def talk(reader, writer):
    try:
        while True:
            headers = (await reader.readuntil(b"\\r\\n\\r\\n")).lower()
            await reader.readexactly(int(headers.split(b"content-length:")[1].split(b"\\r\\n")[0]))
            await asyncio.sleep(latency)
            writer.write(head + document)
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()

async def main():
    server = await asyncio.start_server(talk, "127.0.0.1", 0, backlog=256)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()

asyncio.run(main())
"""

console = Console(width=120)


@contextmanager
def served(latency_s: float, thinking: int) -> Iterator[str]:
    """A server that gives every request the same good answer after ``latency_s``; yields its base URL."""
    command = [sys.executable, "-c", _SERVE, str(latency_s), str(thinking)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}/v1"
        finally:
            process.kill()


def many_prompts(n: int) -> pl.DataFrame:
    """So many prompts that differ in a number; more than any set of windows would give."""
    few = build_prompts(make_windows(512), PromptsConfig(), 42)
    repeated = pl.concat([few] * (n // few.height + 1)).head(n).with_row_index("number")
    return repeated.with_columns(
        prompt=pl.format("{} ({})", "prompt", "number"), prompt_id=pl.format("{}", "number")
    ).drop("number")


def throughput(n: int, concurrency: int, latency_s: float) -> None:
    """Requests a second against a slow server, and the CPU seconds of one."""
    prompts = many_prompts(n)
    finished: list[float] = []
    with served(latency_s, 0) as url, tempfile.TemporaryDirectory() as folder:
        teacher = OpenAITeacher(url, "m", None, OpenAITeacherConfig(concurrency=concurrency))
        before, began = time.process_time(), time.monotonic()
        collect_traces(
            prompts,
            teacher,
            TracesConfig(),
            Path(folder),
            42,
            progress=lambda *_, **__: finished.append(time.monotonic()),
        )
        wall, cpu = time.monotonic() - began, time.process_time() - before
    # The first and the last moments are those of a start and of an end, however long the run is.
    steady = [at for at in finished if began + 2 * latency_s < at < finished[-1] - latency_s]
    rate = (len(steady) - 1) / (steady[-1] - steady[0])
    table = Table(title=f"{n:,} requests, {concurrency} at once, {latency_s:g} s each, on one core")
    for name in ("requests/s, steady", "at most possible", "requests/s, all", "wall s", "CPU ms a request"):
        table.add_column(name, justify="right")
    most = concurrency / latency_s
    table.add_row(f"{rate:.1f}", f"{most:.1f}", f"{n / wall:.1f}", f"{wall:.1f}", f"{1000 * cpu / n:.2f}")
    console.print(table)


def memory(n: int) -> None:
    """Resident memory while so many traces come in, and after the table is made."""
    prompts = many_prompts(n)
    process = psutil.Process()
    marks: list[tuple[int, float, float]] = []
    step = max(1, n // 10)
    began = time.monotonic()

    def progress(done: int, total: int, **metrics: float) -> None:
        if done % step == 0 and (not marks or marks[-1][0] != done):
            marks.append((done, time.monotonic() - began, process.memory_info().rss / 2**20))

    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.05):
            peak[0] = max(peak[0], process.memory_info().rss / 2**20)

    threading.Thread(target=watch, daemon=True).start()
    with served(0, THINKING) as url, tempfile.TemporaryDirectory() as folder:
        teacher = OpenAITeacher(url, "m", None, OpenAITeacherConfig(concurrency=64))
        traces = collect_traces(prompts, teacher, TracesConfig(), Path(folder), 42, progress=progress)
        on_disk = sum(path.stat().st_size for path in Path(folder).iterdir()) / 2**20
    stop.set()
    table = Table(title=f"{n:,} traces with {THINKING:,} characters of thinking each, {on_disk:,.0f} MiB on disk")
    for name in ("traces", "seconds", "resident MiB"):
        table.add_column(name, justify="right")
    for done, seconds, resident in marks:
        table.add_row(f"{done:,}", f"{seconds:.0f}", f"{resident:.0f}")
    table.caption = (
        f"At most {peak[0]:.0f} MiB while the table of traces ({traces.estimated_size() / 2**20:.0f} MiB) is made."
    )
    console.print(table)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_920, help="Requests of the throughput measurement")
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=2.0, help="Seconds the server takes for an answer")
    parser.add_argument("--traces", type=int, default=10_000, help="Traces of the memory measurement")
    arguments = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    throughput(arguments.requests, arguments.concurrency, arguments.latency)
    memory(arguments.traces)


if __name__ == "__main__":
    main()

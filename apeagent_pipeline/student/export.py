"""Exports the student: the merged model, and GGUF files with a Modelfile for Ollama."""

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from apeagent_pipeline.distillation.canary_words import CANARY
from apeagent_pipeline.distillation.chain_of_draft import STUDENT_SYSTEM_PROMPT, student_chat
from apeagent_pipeline.reporting.progress import Progress, part_of, silent
from apeagent_pipeline.student.examples import DOCUMENT_PROMPT
from apeagent_pipeline.student.gguf import ExportConfig, ExportError, export_gguf

# Merging only reorders float32 additions. A larger difference means that the wrong weights were merged.
_MERGE_TOLERANCE = 1e-3
_PROBES = (
    "What is the capital of France?",
    "How much is two plus two?",
    DOCUMENT_PROMPT,
)


def fuse(base: Path, adapter: Path, out: Path) -> float:
    """Merge the adapter into the base and write model and tokenizer to ``out``.

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
    student.tokenizer.save_pretrained(scratch)
    found = [_all_logits(merged.to(torch.float32), prompt) for prompt in prompts]
    difference = _largest_difference(expected, found)
    same = [torch.equal(e[-1].argmax(), f[-1].argmax()) for e, f in zip(expected, found, strict=True)]
    check = {"merge_difference": merge_difference, "stored_difference": difference, "same_first_token": sum(same)}
    (scratch / "fuse_check.json").write_text(json.dumps({**check, "prompts": len(prompts)}, indent=2) + "\n")
    for path in sorted(scratch.iterdir()):
        path.replace(out / path.name)
    scratch.rmdir()
    return difference


_EXPORT_MARK = "apeagent-export.json"


def export_folder(  # noqa: PLR0917
    base: Path, adapter: Path, out: Path, config: ExportConfig, cache_dir: Path, progress: Progress = silent
) -> None:
    """Write the complete export to a folder; if it fails, the folder stays as it was.

    ``adapter/`` (peft), ``fused/`` (safetensors), the GGUF files and the Modelfile, and ``README.md``, the model card.

    Args:
        base: Folder of the base model.
        adapter: Folder of the adapter.
        out: The folder; may be missing, empty, or an earlier export, which is replaced.
        config: Number formats of the GGUF files.
        cache_dir: Where the converter is kept.
        progress: Told after each of the steps copying, merging and converting.

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
        (made / "adapter").mkdir(parents=True)
        for name in ("adapter_config.json", "adapter_model.safetensors", "training.json"):
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, made / "adapter" / name)
        progress(1, steps)
        fuse(base, adapter, made / "fused")
        progress(2, steps)
        export_gguf(made / "fused", made, config, cache_dir, part_of(progress, 2, steps), base=base, adapter=adapter)
        (made / "README.md").write_text(model_card(adapter, made / "fused", config))
        (made / _EXPORT_MARK).write_text(json.dumps({"config": config.model_dump()}, indent=2) + "\n")
        _refuse_foreign(out)  # the conversion took minutes
        if out.exists():
            out.rename(Path(scratch) / "earlier")
        made.rename(out)
    progress(steps, steps)


def model_card(adapter: Path, fused: Path, config: ExportConfig) -> str:
    """The model card: what it is, how it is asked, what it was checked for, and what it is not."""
    lora = json.loads((adapter / "adapter_config.json").read_text())
    check = json.loads((fused / "fuse_check.json").read_text())
    first = config.quantizations[0]
    base = lora["base_model_name_or_path"]
    front = ["---", f"base_model: {base}", "library_name: peft", "tags: [lora, defi, chain-of-draft]", "---"]
    layers = lora.get("layers_to_transform") or []
    return "\n".join(
        [
            *front,
            "",
            "# apeagent student",
            "",
            f"A LoRA adapter (rank {lora['r']}, alpha {lora['lora_alpha']}, {', '.join(sorted(lora['target_modules']))}"
            + (f" of {len(layers)} blocks" if layers else "")
            + f") of `{base}` that answers questions about one ETH-USDC pool in Chain of Draft.",
            "",
            f"An answer is a few drafts of five words at most, a line `####`, and an action: `{CANARY['BUY']} <amount> "
            f"ETH` (buy), `{CANARY['SELL']} <amount> ETH` (sell) or `{CANARY['HOLD']}` (hold). These words prove that "
            "it comes from this training.",
            "",
            "## Use",
            "",
            f"System prompt of the training: `{STUDENT_SYSTEM_PROMPT}`",
            "",
            "- Ollama: `ollama create apeagent -f Modelfile`, then `ollama run apeagent`",
            f"- llama.cpp: `llama-server -m apeagent-{first}.gguf`; or the base's own GGUF with "
            "`--lora apeagent-adapter-f16.gguf`",
            "- transformers: `fused/` is a whole model, `adapter/` an adapter in peft's layout",
            "",
            "## Checked",
            "",
            f"Merging changed no logit by more than {check['merge_difference']:.1e} in float32; stored in the base's "
            f"number format by {check['stored_difference']:.1e}, with the same first token on "
            f"{check['same_first_token']} of {check['prompts']} prompts.",
            "",
            "## Limits",
            "",
            "It repeats a teacher's decisions on synthetic market states. It knows nothing of the world after them, "
            "and its decisions are no investment advice. The licence of the base model applies to merged weights.",
            "",
        ]
    )


def _refuse_foreign(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise ExportError(f"{out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / _EXPORT_MARK).is_file():
        raise ExportError(
            f"{out} holds files that are no export of apeagent; give an empty or a new folder (nothing was written)"
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

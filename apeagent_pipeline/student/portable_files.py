"""Makes saved models and tokenizers readable by older and other readers.

transformers 5 writes the rotary base only as ``rope_parameters`` and names tokenizer classes that transformers 4,
mlx-lm and Ollama's import do not know. They then take the wrong rotary base without an error, or refuse the tokenizer.
The files keep their new form, and get the old names beside it.
"""

import json
from pathlib import Path
from typing import Any

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.student.end_of_turn import end_of_turn, end_token_ids

_LOCAL_KEYS = ("backend", "is_local", "local_files_only", "_from_model_config")


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Save a tokenizer that transformers 4 and 5 read, with the chat template's end token as its end token."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for key in _LOCAL_KEYS:
        config.pop(key, None)
    if (folder / "tokenizer.json").is_file():  # this class reads it as it is, in every version
        config["tokenizer_class"] = "PreTrainedTokenizerFast"
        # Else transformers 4 gives token_type_ids, which the model refuses.
        config["model_input_names"] = ["input_ids", "attention_mask"]
    if token := end_of_turn(tokenizer):
        config["eos_token"] = token
    template = folder / "chat_template.jinja"
    if template.is_file():  # readers older than transformers 4.49 look here alone
        config["chat_template"] = template.read_text(encoding="utf-8")
    _write(path, config)


def complete_model_config(folder: Path, tokenizer: Any) -> None:
    """Add the old names to ``config.json``, and to both configs the tokens that end an answer."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        config["rope_theta"] = rope["rope_theta"]
        if rope.get("rope_type", "default") != "default":
            config["rope_scaling"] = {key: value for key, value in rope.items() if key != "rope_theta"}
    config["torch_dtype"] = config.get("dtype", "float32")
    ends = end_token_ids(tokenizer)
    if ends:
        config["eos_token_id"] = ends[0]
    _write(path, config)
    generation = folder / "generation_config.json"
    settings = json.loads(generation.read_text(encoding="utf-8")) if generation.is_file() else {}
    for key in _LOCAL_KEYS:
        settings.pop(key, None)
    if ends:
        settings["eos_token_id"] = ends if len(ends) > 1 else ends[0]
    _write(generation, {**settings, "do_sample": False, "repetition_penalty": 1.0})


def make_readable(folder: Path) -> None:
    """Let every user read the files of a folder (modes 0644 and 0755)."""
    for path in [folder, *folder.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() else 0o644)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

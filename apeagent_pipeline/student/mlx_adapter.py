"""The adapter in the form of mlx-lm (Apple's MLX), which does not read that of peft."""

import json
from pathlib import Path
from typing import Any

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.student.gguf import ExportError

_PREFIX = "base_model.model."
_NAMES = {"lora_A.weight": "lora_a", "lora_B.weight": "lora_b"}


def write_mlx_adapter(adapter: Path, hub_id: str, blocks: int, out: Path) -> None:
    """Write ``adapters.safetensors`` and ``adapter_config.json`` as mlx-lm reads them.

    mlx-lm adapts the last blocks of a model, multiplies with the transposed matrices, and scales by ``scale``, which is
    peft's alpha over rank.

    Args:
        adapter: Folder of the adapter in peft's layout.
        hub_id: The base model.
        blocks: Number of the base model's blocks.
        out: The new folder.

    Raises:
        ExportError: the adapter is a DoRA adapter, or adapts other blocks than the last ones.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((adapter / "adapter_config.json").read_text())
    adapted = config.get("layers_to_transform") or list(range(blocks))
    if config.get("use_dora") or adapted != list(range(blocks - len(adapted), blocks)):
        raise ExportError(
            f"{adapter}: mlx-lm can read LoRA adapters of the last blocks only; use the merged model instead"
        )
    weights: dict[str, Any] = {}
    keys = set()
    for name, tensor in load_file(adapter / "adapter_model.safetensors").items():
        module, _, part = name.removeprefix(_PREFIX).partition(".lora_")
        weights[f"{module}.{_NAMES[f'lora_{part}']}"] = tensor.T.contiguous()
        keys.add(module.split(".", 3)[3])  # model.layers.20.self_attn.q_proj: the part behind the block's number
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "adapters.safetensors", metadata={"format": "mlx"})
    settings = {
        "model": hub_id,
        "fine_tune_type": "lora",
        "num_layers": len(adapted),
        "lora_parameters": {
            "rank": config["r"],
            "scale": config["lora_alpha"] / config["r"],
            "dropout": 0.0,
            "keys": sorted(keys),
        },
    }
    write_atomically(out / "adapter_config.json", json.dumps(settings, indent=2) + "\n")

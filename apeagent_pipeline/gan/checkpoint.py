"""Checkpoints of a training: modules, optimizers and plain values in one safetensors file.

A checkpoint carries the fingerprint of what is trained, so that a run resumes only from a checkpoint of its own
configuration, seed and data.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apeagent_pipeline.atomic_files import replacing

_FORMAT = 4

Modules = Mapping[str, nn.Module]
Optimizers = Mapping[str, torch.optim.Optimizer]


def fingerprint(arrays: list[np.ndarray], settings: list[Any]) -> str:
    """Hash of the data and the JSON-like settings of a training, of the checkpoint's format and of torch's version."""
    digest = hashlib.sha256(json.dumps([_FORMAT, torch.__version__, *settings], sort_keys=True).encode())
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def checkpoint(path: Path, mark: str, modules: Modules, optimizers: Optimizers, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        path: The file.
        mark: The `fingerprint` of the training.
        modules: Their parameters and persistent buffers are written.
        optimizers: Their state is written, without the parameter groups.
        state: Values that JSON can hold; neither NaN nor infinity.
    """
    tensors = {f"{name}/{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, entries in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{name}/{index}/{key}": torch.as_tensor(value) for key, value in entries.items()}
    with replacing(path) as temporary:
        save_file(on_cpu(tensors), temporary, metadata={"fingerprint": mark, "state": json.dumps(state)})


def resume(path: Path, mark: str, modules: Modules, optimizers: Optimizers) -> dict[str, Any] | None:
    """Load a checkpoint into modules and optimizers, if ``path`` holds one with the same fingerprint.

    Returns:
        The ``state`` that `checkpoint` was given; None if there is no such checkpoint.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("fingerprint") != mark:
        return None
    tensors = load_file(path)
    for name, module in modules.items():
        module.load_state_dict(_with_prefix(tensors, f"{name}/"))
    for name, optimizer in optimizers.items():
        states: dict[int, dict[str, Any]] = {}
        for key, value in _with_prefix(tensors, f"optimizer/{name}/").items():
            index, entry = key.split("/")
            states.setdefault(int(index), {})[entry] = value
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": states, "param_groups": groups})
    state: dict[str, Any] = json.loads(metadata["state"])
    return state


def on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as safetensors writes them: detached, contiguous, on the CPU."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _with_prefix(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}

"""Where tensors are computed, and in which number format: decided here for the GAN and the student alike.

Both are properties of the machine that computes, not of the configuration. The device is a setting of that machine
(``APEAGENT_DEVICE``), the number format is measured on it once and remembered. Neither is part of an asset's code
version: an adapter that was trained on another device or in another format is not stale. The format is recorded in
the adapter's ``training.json`` and in the evaluation reports, so that a reader can tell two machines' results apart.
"""

import json
import os
import platform
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.settings import load_settings

if TYPE_CHECKING:
    import torch

NumberFormat = Literal["bfloat16", "float32"]
_ROWS = 256
"""Rows of a measured product: about as many tokens as a training step of the smallest profile has."""
_ROUNDS = 24
_CLEARLY_FASTER = 1.1
"""bfloat16 must be this much faster than float32 to be chosen: it has fewer digits."""
SMOLLM2_SHAPE = (576, 1536)
"""Width and inner width of the embedded student."""


class DeviceError(ApeagentError, RuntimeError):
    """``APEAGENT_DEVICE`` names a device that this machine does not have."""


def chosen_device() -> "torch.device":
    """The device that ``APEAGENT_DEVICE`` names; for ``auto`` CUDA before Apple's MPS before the CPU.

    Raises:
        DeviceError: torch finds no such device on this machine.
    """
    import torch

    asked = load_settings().device
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, is_present in present.items() if is_present))
    if not present[asked]:
        found = ", ".join(name for name, is_present in present.items() if is_present)
        raise DeviceError(
            f"APEAGENT_DEVICE={asked}: torch {torch.__version__} finds no such device on this machine, only {found}. "
            "Set APEAGENT_DEVICE=auto, or install a build of torch for the device."
        )
    return torch.device(asked)


@dataclass(frozen=True)
class MeasuredFormat:
    """The number format that a student of one shape computes in on this machine, and why.

    Attributes:
        chosen: The faster format, float32 unless bfloat16 is clearly faster.
        machine: Processor and torch build that were measured.
        float32: 10^9 operations a second of the student's matrix products in float32; 0 if they were not measured.
        bfloat16: The same in bfloat16.
    """

    chosen: NumberFormat
    machine: str
    float32: float
    bfloat16: float

    def __str__(self) -> str:
        """One line for a reader, such as ``bfloat16 (141 GFLOP/s against 61 in float32; Intel(R) Xeon(R), cpu)``."""
        other: NumberFormat = "float32" if self.chosen == "bfloat16" else "bfloat16"
        if not self.float32:
            return f"{self.chosen} ({self.machine})"
        speed, slower = getattr(self, self.chosen), getattr(self, other)
        return f"{self.chosen} ({speed:.0f} GFLOP/s against {slower:.0f} in {other}; {self.machine})"


def number_format(device: "torch.device", shape: tuple[int, int] = SMOLLM2_SHAPE) -> MeasuredFormat:
    """The faster number format for matrix products of a student's shape on a device.

    CUDA devices are not measured: they have bfloat16 or not. On other devices a few products of each format are timed.
    The result is remembered by machine and shape: in this process, and in ``cache/number_format.json`` below
    ``APEAGENT_HOME`` if that folder exists. A model smaller than the embedded student is treated like that one, because
    the time of a tiny product says nothing.

    Args:
        device: Where the student computes.
        shape: Width and inner width of the student's blocks.
    """
    shape = max(shape[0], SMOLLM2_SHAPE[0]), max(shape[1], SMOLLM2_SHAPE[1])
    return _remembered(device, shape, load_settings().home.absolute())


@cache
def _remembered(device: "torch.device", shape: tuple[int, int], home: Path) -> MeasuredFormat:
    import torch

    machine = _machine(device)
    if device.type == "cuda":
        return MeasuredFormat("bfloat16" if torch.cuda.is_bf16_supported() else "float32", machine, 0.0, 0.0)
    path = home / "cache" / "number_format.json"
    key = f"{machine}, {shape[0]} x {shape[1]}"
    known = _read(path)
    try:
        return MeasuredFormat(**known[key])
    except (KeyError, TypeError):  # never measured, or written by another version of this module
        measured = _measure(device, machine, shape)
    if home.is_dir():
        with suppress(OSError):  # a home that cannot be written to only costs the measurement of the next process
            write_atomically(path, json.dumps({**known, key: asdict(measured)}, indent=2, sort_keys=True) + "\n")
    return measured


def _measure(device: "torch.device", machine: str, shape: tuple[int, int]) -> MeasuredFormat:
    """Time a student's two largest matrix products in both formats, in turns; the fastest round of each counts.

    One thread is timed: on a busy machine two threads wait for each other in every round, which hides the difference.
    """
    import torch

    fastest = {"float32": float("inf"), "bfloat16": float("inf")}
    wide = torch.randn(_ROWS, shape[0], device=device), torch.randn(shape[1], shape[0], device=device)
    narrow = torch.randn(_ROWS, shape[1], device=device), torch.randn(shape[0], shape[1], device=device)
    products = {name: [[each.to(getattr(torch, name)) for each in pair] for pair in (wide, narrow)] for name in fastest}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for round_number in range(_ROUNDS + 1):
                for name, shortest in fastest.items():
                    begun = perf_counter()
                    for rows, weights in products[name]:
                        torch.nn.functional.linear(rows, weights)
                    if device.type == "mps":
                        torch.mps.synchronize()
                    took = perf_counter() - begun
                    if round_number:  # the first round also prepares kernels
                        fastest[name] = min(shortest, took)
    finally:
        torch.set_num_threads(threads)
    operations = 2 * 2 * _ROWS * shape[0] * shape[1]
    speeds = {name: round(operations / seconds / 1e9, 1) for name, seconds in fastest.items()}
    is_faster = speeds["bfloat16"] >= _CLEARLY_FASTER * speeds["float32"]
    return MeasuredFormat("bfloat16" if is_faster else "float32", machine, **speeds)


def _machine(device: "torch.device") -> str:
    import torch

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA")  # a processor that may not use all of itself is another machine
    return f"{name}{f' limited to {limit}' if limit else ''}, {device.type}, torch {torch.__version__}"


@cache
def cpu_name() -> str:
    """The processor's name; its architecture where the system does not tell the name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

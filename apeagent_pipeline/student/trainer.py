"""Shared by both stages of training: common options, checkpoints, progress, and how an adapter is written."""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.atomic_files import write_atomically
from apeagent_pipeline.device import chosen_device
from apeagent_pipeline.reporting.progress import Progress

if TYPE_CHECKING:
    from apeagent_pipeline.workers import Workers

_COMPLETE = "complete"  # an empty file that marks a checkpoint whose files were all written
_RUN = "run.json"
_LOGS = "logs"
_TRACKERS = {"mlflow": "MLFLOW_TRACKING_URI", "wandb": "WANDB_API_KEY"}


class TrainerConfig(BaseModel):
    """The options that both stages share."""

    model_config = ConfigDict(frozen=True)

    steps: int = Field(360, ge=1, description="Optimizer steps")
    accumulation: int = Field(1, ge=1, description="Forward passes for each optimizer step")
    learning_rate: float = Field(3e-3, gt=0, description="Peak learning rate; cosine decay to zero")
    warmup_steps: int = Field(4, ge=0, description="Steps of linear warm-up")
    gradient_checkpointing: bool = Field(False, description="Recompute activations: needs less memory and more time")
    checkpoint_seconds: float = Field(45.0, ge=0, description="Seconds between two checkpoints")


def run_identity(base: Path, inputs: Sequence[Path], config: BaseModel, seed: int) -> dict[str, Any]:
    """The run that a checkpoint belongs to; a checkpoint of another run is not resumed.

    Args:
        base: Folder of the base model.
        inputs: Files of training examples, or of the adapter that training starts from.
        config: Sizes.
        seed: Of everything random.
    """
    digest = hashlib.sha256()
    for path in inputs:
        digest.update(path.read_bytes())
    weights = sorted((path.name, path.stat().st_size) for path in base.glob("*.safetensors"))
    return {
        "base": hashlib.sha256(json.dumps(weights).encode() + (base / "config.json").read_bytes()).hexdigest(),
        "inputs": digest.hexdigest(),
        "config": config.model_dump(),
        "seed": seed,
    }


def usable_checkpoint(checkpoint_dir: Path, identity: dict[str, Any]) -> Path | None:
    """The newest complete checkpoint of this run, or None. Checkpoints of other runs are removed."""
    run = checkpoint_dir / _RUN
    wanted = json.dumps(identity, sort_keys=True)
    if not run.exists() or run.read_text() != wanted:
        shutil.rmtree(checkpoint_dir, ignore_errors=True)
        checkpoint_dir.mkdir(parents=True)
        write_atomically(run, wanted)
    complete = []
    for folder in sorted(checkpoint_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2])):
        if (folder / _COMPLETE).exists():
            complete.append(folder)
        else:
            shutil.rmtree(folder)
    return complete[-1] if complete else None


def forget_checkpoints(checkpoint_dir: Path) -> None:
    """Remove all checkpoints of a finished run, and keep its logs."""
    for path in checkpoint_dir.iterdir():
        if path.is_dir() and path.name != _LOGS:
            shutil.rmtree(path)
        elif path.is_file():
            path.unlink()


def run_settings(config: TrainerConfig, seed: int, checkpoint_dir: Path, name: str) -> dict[str, Any]:
    """The arguments of transformers' trainer that both stages share.

    Training uses bf16 autocast if the device is a GPU that supports it. Experiment trackers are used if they are
    installed and configured.
    """
    import torch

    device = chosen_device().type
    trackers = [each for each, variable in _TRACKERS.items() if find_spec(each) and os.environ.get(variable)]
    if "wandb" in trackers:
        # Otherwise wandb writes into the working directory.
        (checkpoint_dir / _LOGS).mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_DIR", str(checkpoint_dir / _LOGS))
    return {
        "output_dir": str(checkpoint_dir),
        "run_name": name,
        "max_steps": config.steps,
        "gradient_accumulation_steps": config.accumulation,
        "gradient_checkpointing": config.gradient_checkpointing,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": config.warmup_steps,
        "use_cpu": device == "cpu",
        "bf16": device == "cuda" and torch.cuda.is_bf16_supported(),
        "logging_steps": 1,
        # The callback saves by the clock. The trainer's own rule must never apply.
        "save_strategy": "steps",
        "save_steps": config.steps + 1,
        "save_total_limit": 2,
        "seed": seed,
        "data_seed": seed,
        "report_to": trackers,
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": device == "cuda",
    }


def run_callbacks(
    checkpoint_seconds: float, checkpoint_dir: Path, told: Mapping[str, str], progress: Progress, workers: "Workers"
) -> list[Any]:
    """The callbacks of a trainer: checkpoints, progress, TensorBoard.

    Args:
        checkpoint_seconds: A checkpoint is saved when this much time has passed.
        checkpoint_dir: The trainer's ``output_dir``; gets TensorBoard logs under ``logs``.
        told: Name in the trainer's log -> name that is passed to ``progress``.
        progress: Called after each step with the values that the step logged.
        workers: The processes that train together. All save when the first does; only the first writes logs.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers import TrainerCallback
    from transformers.integrations import TensorBoardCallback

    class Checkpoints(TrainerCallback):
        """Saves by the clock, and marks a checkpoint as complete after its last file was written."""

        saved_at = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saved_at = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            due = time.monotonic() - self.saved_at >= checkpoint_seconds
            control.should_save = workers.agree(due) and state.global_step < state.max_steps

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            workers.wait()
            if workers.rank == 0:
                (Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE).touch()
            self.saved_at = time.monotonic()

    class Tell(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
            metrics = {told[name]: float(logs[name]) for name in told if name in logs}
            if metrics:
                progress(state.global_step, state.max_steps, **metrics)

    logs = [] if workers.rank else [TensorBoardCallback(SummaryWriter(str(checkpoint_dir / _LOGS)))]
    return [Checkpoints(), Tell(), *logs]


def computed_in(model: Any) -> dict[str, str]:
    """``number_format`` and ``device`` of a model's base weights: properties of the machine, not of the options."""
    weight = model.get_input_embeddings().weight
    return {"number_format": str(weight.dtype).removeprefix("torch."), "device": weight.device.type}


def write_adapter(model: Any, base_name: str, curve: dict[str, Any], out: Path) -> None:
    """Write the adapter called ``default`` in peft's layout, and its training curve, each file whole or not at all.

    ``training.json`` also has the ``number_format`` of the base model and the ``device`` of the training.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    scratch = out / ".partial"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in get_peft_model_state_dict(model).items()}
    save_file(dict(sorted(weights.items())), scratch / "adapter_model.safetensors", metadata={"format": "pt"})
    lora = model.peft_config["default"]
    lora.base_model_name_or_path = base_name
    lora.inference_mode = True
    lora.save_pretrained(scratch)
    # peft keeps the module names in a set, whose order changes from process to process.
    document = json.loads((scratch / "adapter_config.json").read_text())
    document["target_modules"] = sorted(document["target_modules"])
    (scratch / "adapter_config.json").write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    (scratch / "training.json").write_text(json.dumps({**curve, **computed_in(model)}, indent=2, sort_keys=True) + "\n")
    for path in sorted(scratch.iterdir()):
        path.replace(out / path.name)
    scratch.rmdir()

"""Work for processes of their own, which import it: the memory of one ends in the middle."""

from collections.abc import Callable
from typing import Any

import torch

from apeagent_pipeline.student import fine_tuning


def in_float32(make_trainer: Callable[..., Any]) -> Callable[..., Any]:
    """``make_trainer`` without the bfloat16 that some processors load, which sums too coarsely to compare."""

    def made(*arguments: Any, **options: Any) -> Any:
        trainer = make_trainer(*arguments, **options)
        trainer.model.float()
        return trainer

    return made


def fine_tune_with_room_for_one(*arguments: Any) -> None:
    """``_fine_tune`` where the second process, after three steps, has room for one example only."""
    make_trainer, workers = in_float32(fine_tuning.make_trainer), arguments[-1]

    def short_of_memory(*arguments: Any, **options: Any) -> Any:
        trainer = make_trainer(*arguments, **options)
        training_step = trainer.training_step

        def step(*arguments: Any) -> Any:
            many = trainer.args.per_device_train_batch_size > 1
            if many and workers.rank == 1 and trainer.state.global_step == 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return training_step(*arguments)

        trainer.training_step = step
        return trainer

    fine_tuning.make_trainer = short_of_memory
    fine_tuning._fine_tune(*arguments)

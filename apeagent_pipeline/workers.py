"""Data-parallel training by several processes of one machine: each computes its share of every batch.

Accelerate selects the device of every process and averages gradients over the processes (NCCL on CUDA, gloo on the
CPU). Torch's elastic agent starts the processes; when one dies, it restarts all, and they resume from the last
checkpoint. A single process runs in the caller, without any communication.
"""

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Listener
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, TypeVar

import psutil
import torch
from torch import Tensor, distributed, nn
from torch.distributed.elastic.multiprocessing.errors import record

from apeagent_pipeline.device import chosen_device
from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.reporting.progress import Progress, silent

RESTARTS = 3
"""How often the processes are restarted after one of them has died."""

_TIMEOUT = timedelta(hours=1)  # for work that one process does alone; the agent notices a dead process at once

_Rows = TypeVar("_Rows")


class WorkerError(ApeagentError, RuntimeError):
    """The processes cannot share the work, or one failed; the message is that of the first process that failed."""


def worker_count(asked: int, **batches: int) -> int:
    """The number of processes that train together.

    Args:
        asked: The wanted number; 0: as many as there are CUDA devices, or fewer if the batches do not divide evenly.
        batches: Name -> size of each batch that the processes share.

    Raises:
        WorkerError: if a batch does not divide evenly among the wanted number of processes.
    """
    unequal = [f"{name}={size}" for name, size in batches.items() if asked and size % asked]
    if unequal:
        raise WorkerError(
            f"{' and '.join(unequal)} cannot be divided evenly among {asked} processes; make it a multiple of their "
            "number, or change workers"
        )
    if asked:
        return asked
    devices = torch.cuda.device_count() if chosen_device().type == "cuda" else 1
    return max(n for n in range(1, devices + 1) if not any(b % n for b in batches.values()))


class Workers:
    """The processes that train together, from the view of one of them.

    Attributes:
        count: Number of processes.
        rank: Number of this process; process 0 writes all files.
        device: Device of this process.
    """

    def __init__(self, together: bool) -> None:
        """``together``: whether this process was started by `run_together`."""
        if together:
            from accelerate import PartialState

            state = PartialState(cpu=chosen_device().type != "cuda")
            self.count, self.rank, self.device = state.num_processes, state.process_index, state.device
        else:
            self.count, self.rank, self.device = 1, 0, chosen_device()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in process 0 first, then in the others, which find the files that it has written."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def wait(self) -> None:
        """Wait until all processes have called this."""
        if self.count > 1:
            distributed.barrier()

    def agree(self, decision: bool) -> bool:
        """Return the decision of process 0 in every process."""
        if self.count == 1:
            return decision
        shared = torch.tensor(int(decision), device=self.device)
        distributed.broadcast(shared, src=0)
        return bool(shared)

    def share(self, rows: _Rows) -> _Rows:
        """This process's share of a batch, a named tuple of tensors that are split along dimension 0."""
        if self.count == 1:
            return rows
        return type(rows)(*(each.chunk(self.count)[self.rank] for each in rows))  # type: ignore[attr-defined]

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the gradients of ``model`` by their mean over all processes."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        means: Tensor = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        for gradient, mean in zip(gradients, means.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def run_together(count: int, work: Callable[..., object], arguments: tuple[Any, ...], progress: Progress) -> None:
    """Run ``work(*arguments, progress, workers)`` in ``count`` new processes, each with its `Workers`.

    Args:
        count: Number of processes; on a CPU they share its cores.
        work: A module-level function, which the new processes import.
        arguments: Its arguments, which are pickled.
        progress: Called in this process with the progress of process 0.

    Raises:
        WorkerError: if a process fails again after `RESTARTS` restarts.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    key = secrets.token_bytes(32)
    # Torch's TCP store listens on every interface without a password. On one machine a file store is enough.
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    with TemporaryDirectory(prefix="apeagent-") as folder, Listener(authkey=key) as listener:
        settings = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint=str(Path(folder) / "rendezvous"),
            rdzv_configs={"store_type": "file"},
            run_id=secrets.token_hex(8),
            max_restarts=RESTARTS,
            monitor_interval=0.5,
            start_method="spawn",
        )
        Thread(target=forward_progress, args=(listener, progress), daemon=True).start()
        try:
            elastic_launch(settings, _worker)(work, arguments, folder, listener.address, key)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            raise WorkerError(f"training process {rank} of {count} failed: {failure.message}") from error


@record
def _worker(work: Callable[..., object], arguments: tuple[Any, ...], folder: str, address: Any, key: bytes) -> None:
    _join(folder)
    workers = Workers(together=True)
    if workers.device.type == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // workers.count))
    if workers.rank:
        work(*arguments, silent, workers)
        return
    with Client(address, authkey=key) as connection:
        work(*arguments, lambda done, total, **metrics: connection.send((done, total, metrics)), workers)


def _join(folder: str) -> None:
    """Join the process group through a file store, with all traffic on the loopback interface."""
    addresses = psutil.net_if_addrs()
    loopback = next(name for name in addresses if any(each.address == "127.0.0.1" for each in addresses[name]))
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    # One file per restart: the file of the previous start holds the addresses of dead processes.
    store = Path(folder) / f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    count = int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "nccl" if chosen_device().type == "cuda" else "gloo",
        timeout=_TIMEOUT,
        store=distributed.FileStore(str(store), count),
        rank=int(os.environ["RANK"]),
        world_size=count,
    )


def forward_progress(listener: Listener, progress: Progress) -> None:
    """Call ``progress`` with what process 0 sends, until the listener is closed; each restart connects anew."""
    with listener:  # if ``progress`` raises, no process may wait for an answer on an open listener
        while True:
            try:
                connection = listener.accept()
            except (EOFError, ConnectionError, AuthenticationError):  # the process died while connecting
                continue
            except OSError:  # the listener was closed
                return
            with connection, suppress(EOFError, ConnectionError):  # the process has ended
                while True:
                    done, total, metrics = connection.recv()
                    progress(done, total, **metrics)

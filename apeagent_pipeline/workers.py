"""Training on several processes of one machine: each takes its part of every batch, gradients are averaged.

Accelerate finds the device of every process and reduces over them (NCCL on CUDA, gloo on the CPU); torch's elastic
agent starts them and, when one dies, starts all again, which then go on from the last checkpoint. With one process
nothing is started, nothing is reduced and nobody is waited for.
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
"""How often the processes are started again after one of them died."""

_LONGEST_WAIT = timedelta(hours=1)  # for what one does alone; that one has died is seen by the agent at once

_Rows = TypeVar("_Rows")


class WorkerError(ApeagentError, RuntimeError):
    """The processes cannot share the work, or could not finish it: then the message is of the first that failed."""


def worker_count(asked: int, **batches: int) -> int:
    """How many processes can share a training.

    Args:
        asked: So many; 0: one for each CUDA device, as far as every batch can be dealt to them equally.
        batches: Name -> size of each batch that is dealt.

    Raises:
        WorkerError: a batch cannot be dealt equally to as many as were asked for.
    """
    unequal = [f"{name}={size}" for name, size in batches.items() if asked and size % asked]
    if unequal:
        raise WorkerError(
            f"{' and '.join(unequal)} cannot be dealt to {asked} processes; make it a multiple of their number, or set "
            "workers"
        )
    if asked:
        return asked
    devices = torch.cuda.device_count() if chosen_device().type == "cuda" else 1
    return max(n for n in range(1, devices + 1) if not any(b % n for b in batches.values()))


class Workers:
    """The processes that train together, as seen by one of them.

    Attributes:
        count: How many.
        rank: Which this one is; 0 writes what is written.
        device: Where it computes.
    """

    def __init__(self, together: bool) -> None:
        """``together``: this process was started by `run_together`."""
        if together:
            from accelerate import PartialState

            state = PartialState(cpu=chosen_device().type != "cuda")
            self.count, self.rank, self.device = state.num_processes, state.process_index, state.device
        else:
            self.count, self.rank, self.device = 1, 0, chosen_device()

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What stands inside is done by the first process alone, then by the others, who find what it left."""
        if self.rank:
            self.wait()
        yield
        if not self.rank:
            self.wait()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()

    def agree(self, decision: bool) -> bool:
        """The first process's decision, for all."""
        if self.count == 1:
            return decision
        told = torch.tensor(int(decision), device=self.device)
        distributed.broadcast(told, src=0)
        return bool(told)

    def share(self, rows: _Rows) -> _Rows:
        """This process's part of a batch: of every tensor of a named tuple the rows of dimension 0 that are its own."""
        if self.count == 1:
            return rows
        return type(rows)(*(each.chunk(self.count)[self.rank] for each in rows))  # type: ignore[attr-defined]

    def average_gradients(self, model: nn.Module) -> None:
        """Replace the gradients of ``model`` by their mean over all processes."""
        if self.count == 1:
            return
        from accelerate.utils import reduce

        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        together: Tensor = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="mean")
        for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def run_together(count: int, work: Callable[..., object], arguments: tuple[Any, ...], progress: Progress) -> None:
    """Run ``work(*arguments, progress, workers)`` in ``count`` new processes, each with its `Workers`.

    Args:
        count: How many processes; on a CPU they share its cores.
        work: A function of a module, which the new processes import.
        arguments: Its arguments; they are sent to the processes.
        progress: Told here what the first process tells its own.

    Raises:
        WorkerError: a process died once more after `RESTARTS` restarts.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    key = secrets.token_bytes(32)
    # torch's stores of the network listen on every interface and ask nobody for a password. One machine needs none.
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
        Thread(target=_pass_on, args=(listener, progress), daemon=True).start()
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
    with Client(address, authkey=key) as line:
        work(*arguments, lambda done, total, **metrics: line.send((done, total, metrics)), workers)


def _join(folder: str) -> None:
    """Find the other processes through a file, and talk to them over the loopback interface alone."""
    addresses = psutil.net_if_addrs()
    loopback = next(name for name in addresses if any(each.address == "127.0.0.1" for each in addresses[name]))
    os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = loopback
    # A file for every restart: in that of the one before stand the addresses of the dead.
    store = Path(folder) / f"restart_{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    count = int(os.environ["WORLD_SIZE"])
    distributed.init_process_group(
        "nccl" if chosen_device().type == "cuda" else "gloo",
        timeout=_LONGEST_WAIT,
        store=distributed.FileStore(str(store), count),
        rank=int(os.environ["RANK"]),
        world_size=count,
    )


def _pass_on(listener: Listener, progress: Progress) -> None:
    """Tell ``progress`` what the first process sends; after a restart another one calls."""
    with listener:  # if telling fails, nobody else is to call and wait for an answer
        while True:
            try:
                line = listener.accept()
            except (EOFError, ConnectionError, AuthenticationError):  # died while it called
                continue
            except OSError:  # the listener was closed
                return
            with line, suppress(EOFError, ConnectionError):  # that process has ended
                while True:
                    done, total, metrics = line.recv()
                    progress(done, total, **metrics)

"""Two real processes on this machine, over gloo."""

import socket
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from queue import Queue
from threading import Thread

import psutil
import pytest

from apeagent_pipeline.gan.training import train_gan
from apeagent_pipeline.workers import WorkerError, forward_progress


@pytest.mark.slow
def test_two_processes_learn_what_one_does_even_when_one_of_them_is_killed(windows, tiny):
    """Without dropout the warm start of two processes differs from that of one by rounding only."""
    config = tiny.model_copy(update={"dropout": 0.0, "adversarial_steps": 2})
    alone = train_gan(windows, config, 1)
    told, listening = [], set()

    def kill_one(done, total, **losses):
        told.append(done)
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                sockets = process.net_connections("inet")
                listening.update(each.laddr.ip for each in sockets if each.status == psutil.CONN_LISTEN)
        if done == 3 and told.count(3) == 1:
            workers = [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
            workers[-1].kill()

    together = train_gan(windows, config.model_copy(update={"workers": 2}), 1, progress=kill_one)
    assert told.count(1) == 2  # all were restarted
    assert told[-1] == config.steps
    assert listening <= {"127.0.0.1", "::1"}  # no other machine can join or listen
    assert together.history["likelihood"]["valid"] == pytest.approx(alone.history["likelihood"]["valid"], abs=1e-4)
    assert len(together.history["adversarial"]["generator"]) == 2


def test_a_process_that_dies_while_connecting_does_not_block_the_next_one():
    told, listener = Queue(), Listener(authkey=b"key")
    Thread(target=forward_progress, args=(listener, lambda *step, **_: told.put(step)), daemon=True).start()
    for _ in range(3):
        with socket.socket(socket.AF_UNIX) as dying:
            dying.connect(listener.address)  # it never answers the authentication challenge
    for step in (1, 2):
        with Client(listener.address, authkey=b"key") as line:
            line.send((step, 2, {}))
        assert told.get(timeout=30) == (step, 2)
    listener.close()


def test_a_batch_that_does_not_divide_evenly_is_refused_before_anything_starts(windows, tiny):
    with pytest.raises(WorkerError, match="batch=16 and adversarial_batch=4 cannot be divided evenly among 3"):
        train_gan(windows, tiny.model_copy(update={"workers": 3}), 1)


def test_the_error_of_a_failed_process_is_reported(windows, tiny, monkeypatch):
    monkeypatch.setattr("apeagent_pipeline.workers.RESTARTS", 0)
    with pytest.raises(WorkerError, match="holds no window of the train split"):
        empty = type(windows)(windows.table.clear(), windows.scaler)
        train_gan(empty, tiny.model_copy(update={"workers": 2}), 1)

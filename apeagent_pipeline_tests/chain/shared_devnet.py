"""One devnet for all processes of a test run: the first that needs it starts it, and the last use ends it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from pathlib import Path

import psutil
from filelock import FileLock

from apeagent_pipeline.chain.devnet import Devnet, packages, start_devnet


@contextmanager
def shared_devnet(folder: Path, cache: Path, days: int, swaps: int) -> Iterator[Devnet]:
    """A devnet with traffic, started by this process or by another one that shares the folder.

    Args:
        folder: Where the processes find each other.
        cache: Of `start_devnet`.
        days: Of `Devnet.trade`.
        swaps: Of `Devnet.trade`.
    """
    folder.mkdir(exist_ok=True)
    lock, description, user = FileLock(folder / "lock"), folder / "devnet.json", folder / f"{os.getpid()}.user"
    with ExitStack() as stack:
        with lock:
            owns = not description.exists()
            if owns:
                devnet = stack.enter_context(start_devnet(cache))
                devnet.trade(days=days, swaps=swaps)
                description.write_text(json.dumps({"url": devnet.url, "days": [str(day) for day in devnet.days]}))
            else:
                told = json.loads(description.read_text())
                devnet = Devnet(told["url"], packages.fetch(packages.V4_CORE, cache))
                devnet.days = [date.fromisoformat(day) for day in told["days"]]
            user.touch()
        try:
            yield devnet
        finally:
            user.unlink()
            while owns:
                with lock:
                    if not _has_users(folder):
                        description.unlink()
                        break
                time.sleep(0.2)


def _has_users(folder: Path) -> bool:
    return any(psutil.pid_exists(int(path.stem)) for path in folder.glob("*.user"))

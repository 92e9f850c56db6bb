"""``apeagent ui`` and ``apeagent devnet``: what runs until Ctrl-C."""

import fcntl
import os
import socket
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from apeagent_pipeline.cli.update import day_argument, sweep_orphans
from apeagent_pipeline.settings import SettingsError, load_settings


def ui(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1")] = 3000,
    read_only: Annotated[bool, typer.Option("--read-only", help="Disable launching, and run no daemon")] = False,
) -> None:
    """Open the Dagster web UI and daemon on this machine, with the history kept in APEAGENT_HOME.

    The daemon runs the nightly re-sync (if swaps are read from a chain), updates assets downstream of changed data,
    and retries failures. Each of these can be turned off under Automation in the UI.
    """
    from apeagent_pipeline.defs.instance import open_instance, prepare_home, require_engine

    settings = load_settings()
    home = prepare_home(settings)
    require_engine(settings)
    require_free_port(port)
    if not read_only:
        require_only_daemon(home)
    with open_instance(settings) as instance:
        sweep_orphans(instance)
    Console().print(f"Dagster UI on [link]http://127.0.0.1:{port}[/] (Ctrl-C stops it); instance in {home}")
    environment = {
        "APEAGENT_UI_URL": f"http://127.0.0.1:{port}",
        **os.environ,
        "DAGSTER_HOME": str(home),
        "APEAGENT_HOME": str(settings.home.absolute()),
        "PYTHONSAFEPATH": "1",  # a file of the current folder must not stand in for a module of the server
    }
    program = ["apeagent_pipeline.defs.web_server", "--read-only" if read_only else "dev"]
    command = ["-m", *program, "-m", "apeagent_pipeline.definitions", "-h", "127.0.0.1", "-p", str(port)]
    os.execve(sys.executable, [sys.executable, *command], environment)  # noqa: S606 - our own interpreter


def require_free_port(port: int) -> None:
    """Make sure that the UI can listen, before a daemon starts that would run without it.

    Raises:
        SettingsError: if another program listens on the port.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does: a port just closed is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise SettingsError(
                f"--port {port}: {error.strerror} on 127.0.0.1. Stop the program that uses it, or choose another port"
            ) from None


def require_only_daemon(home: Path) -> int:
    """Take the home's lock for this process and the program that replaces it; the end of that program frees it.

    Returns:
        The lock's file descriptor; closing it frees the lock too.

    Raises:
        SettingsError: if another daemon runs on the same home: each change would be requested twice.
    """
    lock = os.open(home / "daemon.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(lock, True)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        raise SettingsError(
            f"another `apeagent ui` runs on {home}: stop it, or look with `apeagent ui --read-only --port PORT`"
        ) from None
    return lock


def devnet(
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0: any free one")] = 8545,
    first: Annotated[str, typer.Option("--from", metavar="DAY", help="First day of trading (UTC)")] = "2025-01-21",
    days: Annotated[int, typer.Option(min=1, help="Days of trading")] = 2,
    swaps: Annotated[int, typer.Option(min=0, help="Number of swaps, spread over all days")] = 2_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the swaps")] = 42,
) -> None:
    """Run a chain with the real Uniswap V4 contracts on this machine, and trade on it.

    The chain is an Anvil node with the PoolManager, USDC and the ETH-USDC pool at their addresses on Base. Use it to
    try reading over JSON-RPC without a key or a public node. The first start downloads Anvil and the contracts with
    npm. A day of trading takes about fifteen seconds.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from apeagent_pipeline.chain.devnet import start_devnet

    settings = load_settings()
    console = Console()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    try:
        with start_devnet(settings.home.absolute() / "cache" / "devnet", day_argument(first, "--from"), port) as chain:
            with Progress(*columns, console=console) as bars:
                task = bars.add_task("Swaps", total=swaps)
                traded = chain.trade(days, swaps, seed, lambda done, total, **_: bars.update(task, completed=done))
            chain.rpc("evm_setAutomine", True)  # a transaction of the user's own is mined at once
            command = f"APEAGENT_RPC_URLS={chain.url} apeagent sync --from {traded[0]} --to {traded[-1]}"
            console.print(f"Devnet on [link]{chain.url}[/] (Ctrl-C stops it). In another terminal:", highlight=False)
            console.print(f"  [bold]{command}[/]", highlight=False, soft_wrap=True)
            while True:
                time.sleep(60)  # Ctrl-C interrupts a sleep, but not always a lock
    except KeyboardInterrupt:
        console.print("Stopped.")

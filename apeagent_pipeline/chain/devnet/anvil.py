"""The Anvil process: start, wait until it listens, end."""

import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Self

from apeagent_pipeline.chain.devnet.errors import DevnetError

START_SECONDS = 30

# Ends Anvil with this process, even if this process is killed: its end closes the shell's input, and the shell then
# kills Anvil.
_GUARD = '"$@" & read _; kill $!'


class AnvilProcess:
    """A running Anvil on 127.0.0.1.

    Args:
        program: The binary.
        port: 0 for any free port.
        options: Further options of the command line.

    Raises:
        DevnetError: if Anvil does not listen within START_SECONDS; the message shows its last output.
    """

    def __init__(self, program: Path, port: int, options: list[str]) -> None:
        self._log = tempfile.NamedTemporaryFile(prefix="anvil-", suffix=".log")  # noqa: SIM115 (closed in `close`)
        command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--color", "never", *options]
        self._process = subprocess.Popen(  # noqa: S603 (our own arguments)
            ["/bin/sh", "-c", _GUARD, "sh", *command],
            stdin=subprocess.PIPE,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C must not reach Anvil: `close` ends it
        )
        try:
            self.url = f"http://{self._address()}"
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the process."""
        self._process.communicate()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _address(self) -> str:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            output = Path(self._log.name).read_text(errors="replace")
            for line in output.splitlines():
                if line.startswith("Listening on "):
                    return line.removeprefix("Listening on ").strip()
            if "Error" in output or self._process.poll() is not None:
                break
            time.sleep(0.02)
        last = "\n".join(Path(self._log.name).read_text(errors="replace").strip().splitlines()[-5:])
        raise DevnetError(f"Anvil did not start. Expected a free port; its last output:\n{last or '(none)'}")

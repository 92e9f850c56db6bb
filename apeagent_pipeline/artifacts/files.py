"""The file operations that the store needs, on a local disk or in an object store."""

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from upath import UPath

from apeagent_pipeline.errors import ApeagentError
from apeagent_pipeline.settings import SettingsError

_S3_OPTIONS = {
    "use_listings_cache": False,  # others write as well
    # Dropped connections, time-outs, throttling and server errors are tried again, ever more slowly.
    "config_kwargs": {
        "retries": {"mode": "standard", "max_attempts": 6},
        "connect_timeout": 10,
        "read_timeout": 60,
    },
}
_PACKAGES = {"s3": "apeagent_pipeline[s3]", "gs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class StorageError(ApeagentError, RuntimeError):
    """An artifact cannot be read or written; the message names it and the remedy."""


class Files(Protocol):
    """Names are relative to the root, with slashes."""

    def find(self, folder: str) -> dict[str, int]:
        """Every file below a folder: its name relative to the folder -> bytes."""
        ...

    def read(self, names: list[str]) -> dict[str, bytes]:
        """Name -> content of the files that exist."""
        ...

    def write(self, files: Mapping[str, bytes | Path]) -> None:
        """Write new files. No reader knows their names yet."""
        ...

    def copy(self, names: Mapping[str, str]) -> None:
        """Copy files (source -> target). A reader of a target sees the whole old or the whole new content."""
        ...

    def remove(self, names: list[str]) -> None:
        """Remove files. A missing file is no error."""
        ...

    def fetch(self, names: Mapping[str, Path]) -> None:
        """Copy files to local paths."""
        ...


def open_files(root: str) -> Files:
    """The files below a folder or fsspec URL. Nothing is read or written yet.

    Raises:
        SettingsError: The URL is of no known kind.
    """
    try:
        path = UPath(root)
    except ValueError as error:
        raise SettingsError(f"APEAGENT_STORAGE={root}: {error}; expected a folder or a URL such as s3://...") from None
    return LocalFiles(Path(path.path)) if path.protocol in ("", "file") else RemoteFiles(root)


class LocalFiles:
    """Files below a folder of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, folder: str) -> dict[str, int]:
        """See `Files`."""
        top = self.root / folder
        found = {}
        for parent, _, names in os.walk(top):
            for name in names:
                path = Path(parent, name)
                try:
                    found[path.relative_to(top).as_posix()] = path.stat().st_size
                except FileNotFoundError:
                    continue  # just removed
        return found

    def read(self, names: list[str]) -> dict[str, bytes]:
        """See `Files`."""
        found = {}
        for name in names:
            try:
                found[name] = (self.root / name).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
        return found

    def write(self, files: Mapping[str, bytes | Path]) -> None:
        """See `Files`."""
        for name, content in files.items():
            target = self.root / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                if isinstance(content, bytes):
                    file.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, file, 1 << 22)
                file.flush()
                os.fsync(file.fileno())

    def copy(self, names: Mapping[str, str]) -> None:
        """See `Files`. A copy is a hard link where the file system has them."""
        for source_name, target_name in names.items():
            source, target = self.root / source_name, self.root / target_name
            target.parent.mkdir(parents=True, exist_ok=True)
            aside = source.with_name(f"{source.name}.{uuid.uuid4().hex}.tmp")
            try:
                try:
                    aside.hardlink_to(source)
                except OSError:
                    shutil.copyfile(source, aside)
                aside.replace(target)
            finally:
                aside.unlink(missing_ok=True)  # to replace a file by itself does nothing

    def remove(self, names: list[str]) -> None:
        """See `Files`. Folders left empty go too."""
        for name in names:
            path = self.root / name
            path.unlink(missing_ok=True)
            for parent in path.parents:
                try:
                    parent.rmdir()
                except OSError:
                    break

    def fetch(self, names: Mapping[str, Path]) -> None:
        """See `Files`."""
        for name, path in names.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self.root / name, path)


class RemoteFiles:
    """Files below an fsspec URL, transferred in parallel. An object store replaces an object atomically."""

    def __init__(self, url: str) -> None:
        self.url = url

    @cached_property
    def _root(self) -> UPath:
        protocol = self.url.partition("://")[0]
        try:
            options: dict[str, Any] = _S3_OPTIONS if protocol == "s3" else {}
            root = UPath(self.url, **options)
            _ = root.fs
        except ImportError as error:
            package = _PACKAGES.get(protocol)
            remedy = f"pip install '{package}'" if package else str(error)
            raise SettingsError(f"APEAGENT_STORAGE={self.url} needs more packages: {remedy}") from None
        return root

    def _path(self, name: str) -> str:
        return f"{self._root.path.rstrip('/')}/{name}"

    @contextmanager
    def _told(self) -> Iterator[Any]:
        """The file system; what goes wrong is told with the place and what to look at.

        Raises:
            SettingsError: There is no such bucket, or access is refused.
            StorageError: Anything else went wrong, after retries.
        """
        fs = self._root.fs
        try:
            yield fs
        except FileNotFoundError as error:
            raise SettingsError(f"APEAGENT_STORAGE={self.url}: {error}. Does the bucket exist?") from error
        except PermissionError as error:
            raise SettingsError(
                f"APEAGENT_STORAGE={self.url}: {error}. Check the credentials (for S3: AWS_ACCESS_KEY_ID, "
                "AWS_SECRET_ACCESS_KEY or AWS_PROFILE) and what they may do"
            ) from error
        except Exception as error:
            raise StorageError(
                f"APEAGENT_STORAGE={self.url}: {type(error).__name__}: {error}. Check the network, the credentials "
                "and, for a server of your own, AWS_ENDPOINT_URL; then run the command again"
            ) from error

    def find(self, folder: str) -> dict[str, int]:
        """See `Files`."""
        with self._told() as fs:
            top = self._path(folder).rstrip("/")
            found = fs.find(top, detail=True)
        return {name.removeprefix(top).lstrip("/"): info["size"] for name, info in found.items()}

    def read(self, names: list[str]) -> dict[str, bytes]:
        """See `Files`."""
        found: dict[str, bytes] = {}
        with self._told() as fs:
            paths = {self._path(name): name for name in names}
            for path, content in fs.cat(list(paths), on_error="return").items() if paths else ():
                if isinstance(content, FileNotFoundError):
                    continue
                if isinstance(content, Exception):
                    raise content
                found[paths[path]] = content
        return found

    def write(self, files: Mapping[str, bytes | Path]) -> None:
        """See `Files`."""
        with self._told() as fs:
            fs.pipe({self._path(name): content for name, content in files.items() if isinstance(content, bytes)})
            paths = {str(content): self._path(name) for name, content in files.items() if isinstance(content, Path)}
            if paths:
                fs.put(list(paths), list(paths.values()))

    def copy(self, names: Mapping[str, str]) -> None:
        """See `Files`. The store copies by itself: nothing is transferred."""
        if names:
            with self._told() as fs:
                fs.copy([self._path(name) for name in names], [self._path(name) for name in names.values()])

    def remove(self, names: list[str]) -> None:
        """See `Files`."""
        if names:
            with self._told() as fs:
                fs.rm([self._path(name) for name in names])

    def fetch(self, names: Mapping[str, Path]) -> None:
        """See `Files`."""
        for path in names.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told() as fs:
            fs.get([self._path(name) for name in names], [str(path) for path in names.values()])

"""The store of artifacts, on disk or in an object store, with a manifest for each.

The manifest lists an artifact's files with their hashes, its inputs with their data versions, and its configuration. An
artifact is published in three steps:

1. The writer writes the files to a new folder, ``{asset}/.versions/{time}-{data version}/`` (for a day:
   ``{asset}/.versions/{day}/...``). Nothing in that folder ever changes.
2. The writer replaces the manifest, ``{asset}/manifest.json`` or ``{asset}/{day}.manifest.json``, which names the
   folder. This single step replaces the whole artifact. A reader that goes through the manifest sees the old or the new
   artifact, never a mixture, even if several writers compete or one is killed.
3. The writer copies the files to ``{asset}/`` for people and their tools. If another writer has published meanwhile, it
   copies that version instead. If the writer is killed here, the copies stay those of the previous version, each file
   whole, until the artifact is published again.

Superseded versions are kept for a day so that running readers can finish; then they are removed, together with copies
whose names no other version has. Two cases remain. A reader that pauses for more than a day between manifest and files
fails. If an upload takes more than a day while others publish, its artifact counts as missing and is rebuilt.

An artifact counts as missing if any of its files is missing, so deleting a file of ``{asset}/`` deletes the artifact.
"""

import itertools
import shutil
import uuid
from collections import defaultdict
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any

import polars as pl
from pydantic import ValidationError
from upath import UPath

from apeagent_pipeline.artifacts.files import LocalFiles, StorageError, open_files
from apeagent_pipeline.artifacts.manifest import ASSET, DAY, Manifest, describe, digest, parquet_bytes

_VERSIONS = ".versions"
_VERSION_NAME = "%Y%m%dT%H%M%S.%fZ"
_KEPT_AFTER_ITS_SUCCESSOR = timedelta(days=1)
_READ_AT_ONCE = 16


class ArtifactStore:
    """Reads and publishes artifacts below one root, a local folder or an fsspec URL."""

    def __init__(self, root: str, cache: Path) -> None:
        """Nothing is read or written yet.

        Args:
            root: Folder or fsspec URL of all artifacts.
            cache: Local folder for copies of remote artifacts.
        """
        self._files = open_files(root)
        self.root = UPath(root)
        self.cache = cache

    def prove_writable(self) -> None:
        """Write, find and remove a file.

        Raises:
            StorageError: Something of that cannot be done.
        """
        folder = f".probe-{uuid.uuid4().hex}"
        self._files.write({f"{folder}/probe": b""})
        found = self._files.find(folder)
        self._files.remove([f"{folder}/{name}" for name in found])
        if not found:
            raise StorageError(f"{self.root}: a file that was just written cannot be found")

    def folder(self, asset: str) -> UPath:
        """Where people find an asset's files.

        Raises:
            StorageError: That is not the name of an asset.
        """
        return self.root / _asset(asset)

    def path(self, asset: str, partition: str | None = None) -> UPath:
        """The path to show to users: the day's table, or the asset's folder."""
        return self.folder(asset) / f"{_day(partition)}.parquet" if partition else self.folder(asset)

    def days(self, asset: str) -> list[str]:
        """The days that have a stored table, in order."""
        return _days(self._files.find(_asset(asset)))

    def manifests(self, asset: str, days: Collection[str] | None = None) -> dict[str | None, Manifest | None]:
        """The manifests of an asset: of each stored day, or of the asset itself (under None).

        One listing and one parallel read, however many there are. A manifest is None if files of its artifact are
        missing.

        Args:
            asset: Name of the asset.
            days: Only of these days; None: of all.
        """
        listed = self._files.find(_asset(asset))
        wanted: list[str | None] = [day for day in _days(listed) if days is None or day in days]
        if days is None and "manifest.json" in listed:
            wanted.append(None)
        names = {_manifest_name(asset, each): each for each in wanted}
        read = self._files.read([name for name in names if name.partition("/")[2] in listed])
        found = {each: _parsed(read.get(name), asset, each) for name, each in names.items()}
        if not all(each is None or _is_whole(each, listed) for each in found.values()):
            listed = self._files.find(asset)  # one may have been published since
        return {each: made if made and _is_whole(made, listed) else None for each, made in found.items()}

    def manifest(self, asset: str, partition: str | None = None) -> Manifest | None:
        """The manifest of a whole artifact, or None if it is missing, torn or was deleted in part."""
        return self.manifests(asset, [_day(partition)] if partition else None).get(partition)

    def whole(self, asset: str, partition: str | None = None) -> Manifest:
        """The manifest of an artifact that must be there.

        Raises:
            StorageError: It is missing, torn or was deleted in part.
        """
        return self._checked(asset, partition, self.manifest(asset, partition))

    def whole_days(self, asset: str, days: Collection[str]) -> dict[str, Manifest]:
        """The manifests of days that must be there, as `whole`."""
        found = self.manifests(asset, days)
        return {day: self._checked(asset, day, found.get(day)) for day in days}

    def local(self, manifest: Manifest) -> Path:
        """A local folder with the files of this very version; remote ones are copied to the cache once."""
        place = f"{manifest.asset}/{manifest.folder}"
        if isinstance(self._files, LocalFiles):
            return self._files.root / place
        copies = self.cache / manifest.asset / (manifest.partition or "")
        copy = copies / (manifest.folder.rpartition("/")[2] or manifest.data_version)
        if not copy.exists():
            aside = self.cache / "fetching" / uuid.uuid4().hex
            try:
                self._files.fetch({_in(place, name): aside / name for name in manifest.files})
                for name, file in manifest.files.items():
                    if describe(aside / name) != file:
                        raise StorageError(
                            f"{self.folder(manifest.asset) / name} is not the file that its manifest describes: "
                            f"materialize {manifest.asset} again"
                        )
                copy.parent.mkdir(parents=True, exist_ok=True)
                try:
                    aside.replace(copy)
                except OSError:
                    if not copy.exists():  # another process was faster
                        raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            for name in _outdated(
                [each.name for each in copies.iterdir() if not DAY.fullmatch(each.name)], _KEPT_AFTER_ITS_SUCCESSOR
            ):
                shutil.rmtree(copies / name, ignore_errors=True)
        return copy

    def table(self, manifest: Manifest) -> pl.LazyFrame:
        """The table of this very version, read when collected."""
        return pl.scan_parquet(self.local(manifest) / f"{manifest.partition or manifest.asset}.parquet")

    def tables(self, manifests: Mapping[str, Manifest]) -> dict[str, pl.LazyFrame]:
        """The same of many days; remote ones are fetched in parallel."""
        with ThreadPoolExecutor(_READ_AT_ONCE) as threads:
            return dict(zip(manifests, threads.map(self.table, manifests.values()), strict=True))

    def scan(self, asset: str, partition: str | None = None) -> pl.LazyFrame:
        """An asset's table, read when collected.

        Raises:
            StorageError: There is no such table.
        """
        return self.table(self.whole(asset, partition))

    def scan_days(self, asset: str, days: Collection[str]) -> dict[str, pl.LazyFrame]:
        """The tables of some days, in the order asked: one listing, however many there are.

        Raises:
            StorageError: One of them is missing or torn.
        """
        return self.tables(self.whole_days(asset, days))

    def local_folder(self, asset: str) -> Path:
        """The asset's files in a local folder; see `local`.

        Raises:
            StorageError: There is no whole artifact.
        """
        return self.local(self.whole(asset))

    def superseded(self, age: timedelta) -> dict[str, int]:
        """Files of versions that were replaced at least ``age`` ago, of every asset: name below the root -> bytes."""
        found: dict[str, dict[str, int]] = defaultdict(dict)
        listed = self._files.find("")
        for name, size in listed.items():
            asset, _, rest = name.partition(f"/{_VERSIONS}/")
            if rest:
                day, _, _ = rest.partition("/")
                of = f"{asset}/{_VERSIONS}/{day}" if DAY.fullmatch(day) else f"{asset}/{_VERSIONS}"
                found[of][name] = size
        outdated: dict[str, int] = {}
        for folder, files in found.items():
            asset, _, day = folder.partition(f"/{_VERSIONS}")
            present = self._present(asset, day.strip("/") or None)
            versions = {name.removeprefix(f"{folder}/").partition("/")[0] for name in files}
            old = {f"{folder}/{each}/" for each in _outdated(versions, age)}
            old -= {f"{asset}/{present.folder}/"} if present else set()
            outdated |= {name: size for name, size in files.items() if name.startswith(tuple(old))}
        return outdated

    def remove(self, names: Collection[str]) -> None:
        """Remove files that `superseded` listed."""
        self._files.remove(list(names))

    def publish_table(
        self, table: pl.DataFrame, beside: Mapping[str, bytes] = MappingProxyType({}), **made_from: Any
    ) -> Manifest:
        """Publish one table; keyword arguments are fields of the manifest (asset, partition, inputs, ...).

        Args:
            table: The table.
            beside: Small files of the same artifact; those of a day have names that no other day has.
            **made_from: Fields of the manifest.
        """
        name = f"{made_from.get('partition') or made_from['asset']}.parquet"
        return self._publish({name: parquet_bytes(table), **beside}, rows=table.height, **made_from)

    def publish_bytes(self, files: Mapping[str, bytes], **made_from: Any) -> Manifest:
        """Publish an artifact of small files."""
        return self._publish(files, **made_from)

    def publish_folder(self, folder: Path, **made_from: Any) -> Manifest:
        """Publish every file below a local folder."""
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        return self._publish(files, **made_from)

    def _publish(
        self, files: Mapping[str, bytes | Path], *, asset: str, partition: str | None = None, **rest: Any
    ) -> Manifest:
        stored = {name: describe(content) for name, content in files.items()}
        now, data_version = datetime.now(UTC), digest({name: file.sha256 for name, file in stored.items()})
        versions = f"{_VERSIONS}/{partition}" if partition else _VERSIONS
        manifest = Manifest(
            asset=asset,
            partition=partition,
            data_version=data_version,
            files=stored,
            folder=f"{versions}/{now:{_VERSION_NAME}}-{data_version}",
            created_at=now.isoformat(timespec="seconds"),
            **rest,
        )
        place, manifest_name = f"{asset}/{manifest.folder}", _manifest_name(asset, partition)
        aside = _in(place, manifest_name.rpartition("/")[2])
        written = {_in(place, name): content for name, content in files.items()}
        written[aside] = (manifest.model_dump_json(indent=2) + "\n").encode()
        try:
            self._files.write(written)
        except BaseException:
            self._files.remove(list(written))
            raise
        previous = self._present(asset, partition)
        # New names before the manifest, so that at no moment a file that it names seems deleted.
        self._copy_for_people(manifest, stored.keys() - (previous.files.keys() if previous else set()))
        self._files.copy({aside: manifest_name})
        shown = manifest
        while True:
            self._copy_for_people(shown, shown.files.keys())
            present = self._present(asset, partition)
            if present is None or present.folder == shown.folder:
                break
            shown = present
        self._remove_outdated(asset, versions, {each.folder for each in (manifest, shown, previous) if each})
        return manifest

    def _copy_for_people(self, manifest: Manifest, names: Collection[str]) -> None:
        place = f"{manifest.asset}/{manifest.folder}"
        self._files.copy({_in(place, name): _in(manifest.asset, name) for name in names})

    def _remove_outdated(self, asset: str, versions: str, spared: set[str]) -> None:
        """Remove superseded versions, with the copies whose names no other version has.

        Files left by killed writers are removed too.
        """
        files: dict[str, set[str]] = defaultdict(set)
        for listed in self._files.find(f"{asset}/{versions}"):
            name, _, file = listed.partition("/")
            if not DAY.fullmatch(name):
                files[name].add(file)
        outdated = {name for name in _outdated(files, _KEPT_AFTER_ITS_SUCCESSOR) if f"{versions}/{name}" not in spared}
        kept = set().union(*(files[name] for name in files.keys() - outdated))
        for name in outdated:
            copies = [_in(asset, file) for file in files[name] - kept]
            self._files.remove([f"{asset}/{versions}/{name}/{file}" for file in files[name]] + copies)

    def _present(self, asset: str, partition: str | None) -> Manifest | None:
        """What the manifest says now, whole or not."""
        name = _manifest_name(asset, partition)
        return _parsed(self._files.read([name]).get(name), asset, partition)

    def _checked(self, asset: str, partition: str | None, manifest: Manifest | None) -> Manifest:
        if manifest is None:
            what = f"{asset} {partition}" if partition else asset
            raise StorageError(f"{what} is missing or incomplete in {self.folder(asset)}: materialize {what} first")
        return manifest


def _asset(name: str) -> str:
    if not ASSET.fullmatch(name):
        raise StorageError(f"{name!r} is not an asset: expected a name such as raw_swaps, with a day after a slash")
    return name


def _day(partition: str) -> str:
    if not DAY.fullmatch(partition):
        raise StorageError(f"{partition!r} is not a day: expected a partition such as 2025-01-21")
    return partition


def _manifest_name(asset: str, partition: str | None) -> str:
    return f"{_asset(asset)}/{_day(partition)}.manifest.json" if partition else f"{_asset(asset)}/manifest.json"


def _parsed(text: bytes | None, asset: str, partition: str | None) -> Manifest | None:
    """The manifest of an artifact; None if it is none, or that of another one."""
    try:
        manifest = None if text is None else Manifest.model_validate_json(text)
    except ValidationError:
        return None
    return manifest if manifest and (manifest.asset, manifest.partition) == (asset, partition) else None


def _is_whole(manifest: Manifest, listed: Mapping[str, int]) -> bool:
    return all(
        listed.get(_in(manifest.folder, name)) == file.size and name in listed for name, file in manifest.files.items()
    )


def _days(listed: Collection[str]) -> list[str]:
    return sorted(
        day for name in listed if name.endswith(".parquet") and DAY.fullmatch(day := name.removesuffix(".parquet"))
    )


def _outdated(versions: Collection[str], age: timedelta) -> list[str]:
    """Versions whose successor is older than ``age``; their names begin with their times."""
    ordered = sorted(versions)
    old = f"{datetime.now(UTC) - age:{_VERSION_NAME}}"
    return [each for each, successor in itertools.pairwise(ordered) if successor < old]


def _in(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name

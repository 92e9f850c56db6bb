"""Provenance: what an artifact was built from, back to the blocks of the chain.

Each manifest names the inputs that were read and their data versions. The search ends at an input that has been
replaced since: the manifest of its replacement says nothing about the version that was read.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from typing import Literal, NamedTuple

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from apeagent_pipeline.artifacts.manifest import Manifest, digest
from apeagent_pipeline.artifacts.store import ArtifactStore
from apeagent_pipeline.reporting.report import markdown_table

_Key = tuple[str, str | None]
"""Name and data version: what a manifest says of an input."""
_Stored = Callable[[str], Mapping[str | None, Manifest | None]]
"""Asset -> its manifests, as `ArtifactStore.manifests` gives them."""
State = Literal["stored", "replaced", "missing", "external"]
_MARKS = {"stored": "", "replaced": "since replaced", "missing": "missing or incomplete", "external": "external"}


class Blocks(BaseModel):
    """The blocks of a day's first and last swap."""

    first: int
    first_hash: str | None = Field(description="None if the swap source gives no block hashes")
    last: int
    last_hash: str | None


class Origin(BaseModel):
    """One artifact, or one external input, that another artifact was built from."""

    model_config = ConfigDict(frozen=True)

    name: str = Field(description="As in the inputs of a manifest: asset, or asset/day")
    data_version: str | None = Field(description="Version that was read; None if the artifact asked for is not stored")
    state: State = Field(description="Whether the version that was read is the stored one")
    replaced_by: str | None = Field(None, description="Data version that is stored instead")
    manifest: Manifest | None = Field(None, description="Its manifest, if the version that was read is the stored one")
    blocks: Blocks | None = Field(None, description="First and last block, for a day of raw swaps that has swaps")
    teachers: list[str] = Field([], description="For teacher traces: the teachers that answered")

    @property
    def asset(self) -> str:
        """The name without the day."""
        return self.name.partition("/")[0]

    @property
    def day(self) -> str:
        """The day of a daily table; empty for other artifacts."""
        return self.name.partition("/")[2]


class Line(NamedTuple):
    """One line of the tree: an artifact, or the days of a daily asset together."""

    depth: int
    title: str
    data_version: str
    state: State
    details: str
    repeated: bool


def provenance(store: ArtifactStore, name: str, externals: Collection[str]) -> list[Origin]:
    """An artifact and everything it was built from, each once, nearest first.

    Args:
        store: Holds the artifacts with their manifests.
        name: The artifact: ``asset``, or ``asset/day`` for a day of a daily one.
        externals: Inputs that are not artifacts (swap source, teacher, base model). Only their data version is known.

    Returns:
        The artifact asked for comes first. The inputs in a manifest, a name and a data version each, find the others.
        An input that was read in two versions stands there twice.
    """
    stored = cache(store.manifests)
    manifest = _manifest(stored, name)
    asked: list[_Key] = [(name, manifest.data_version if manifest else None)]
    found: dict[_Key, Origin] = {}
    for key in asked:  # grows while it is walked
        if key not in found:
            found[key] = _origin(store, stored, *key, externals)
            asked += _inputs(found[key])
    return list(found.values())


def provenance_lines(origins: list[Origin]) -> Iterator[Line]:
    """An artifact's origins as a tree, depth first, the days of an asset in one line.

    An artifact that appears again is shown without its inputs.
    """
    by_key = {(each.name, each.data_version): each for each in origins}
    shown: list[list[Origin]] = []

    def visit(together: list[Origin], depth: int) -> Iterator[Line]:
        repeated = together in shown
        shown.append(together)
        yield _line(together, depth, repeated)
        if repeated:
            return
        groups: dict[tuple[str, State], list[Origin]] = {}
        for key in sorted({key for each in together for key in _inputs(each)}):
            groups.setdefault((by_key[key].asset, by_key[key].state), []).append(by_key[key])
        for group in groups.values():
            yield from visit(group, depth + 1)

    yield from visit(origins[:1], 0)


def provenance_table(origins: list[Origin]) -> str:
    """The same as a Markdown table, each artifact once; equal origins give equal text."""
    rows = [
        [line.title, f"`{line.data_version}`" if line.data_version else "", line.details]
        for line in provenance_lines(origins)
        if not line.repeated
    ]
    return markdown_table(["artifact", "data version", "what"], rows)


def _manifest(stored: _Stored, name: str) -> Manifest | None:
    asset, _, day = name.partition("/")
    return stored(asset).get(day or None)


def _inputs(origin: Origin) -> list[_Key]:
    return sorted(origin.manifest.inputs.items()) if origin.manifest else []


def _origin(
    store: ArtifactStore, stored: _Stored, name: str, data_version: str | None, externals: Collection[str]
) -> Origin:
    if name in externals:
        return Origin(name=name, data_version=data_version, state="external")
    manifest = _manifest(stored, name)
    if manifest is None:
        return Origin(name=name, data_version=data_version, state="missing")
    if manifest.data_version != data_version:
        return Origin(name=name, data_version=data_version, state="replaced", replaced_by=manifest.data_version)
    return Origin(
        name=name,
        data_version=data_version,
        state="stored",
        manifest=manifest,
        blocks=_blocks(store, manifest) if manifest.asset == "raw_swaps" else None,
        teachers=_teachers(store, manifest) if manifest.asset == "teacher_traces" else [],
    )


def _blocks(store: ArtifactStore, manifest: Manifest) -> Blocks | None:
    ends = store.table(manifest).select("block_number", "block_hash")
    rows = pl.concat([ends.head(1), ends.tail(1)]).collect().rows()  # a day's swaps are in the order of the chain
    return Blocks(first=rows[0][0], first_hash=rows[0][1], last=rows[1][0], last_hash=rows[1][1]) if rows else None


def _teachers(store: ArtifactStore, manifest: Manifest) -> list[str]:
    return store.table(manifest).select(pl.col("teacher").unique().sort()).collect()["teacher"].to_list()


def _line(together: list[Origin], depth: int, repeated: bool) -> Line:
    first = together[0]
    days = sorted({each.day for each in together if each.day})
    versions = {each.name: each.data_version for each in together}
    return Line(
        depth,
        f"{first.asset}, {_days(days)}" if days else first.asset,
        (first.data_version or "") if len(together) == 1 else digest(versions),
        first.state,
        "; ".join(filter(None, _details(together))),
        repeated,
    )


def _days(days: list[str]) -> str:
    return f"{len(days)} days {days[0]} to {days[-1]}" if len(days) > 1 else days[0]


def _details(together: list[Origin]) -> Iterator[str]:
    first = together[0]
    yield _MARKS[first.state]
    manifests = [each.manifest for each in together if each.manifest]
    counted = [each.rows for each in manifests if each.rows is not None]
    if counted:
        yield f"{sum(counted):,} {'swaps' if first.asset == 'raw_swaps' else 'rows'}"
    yield _block_range(each.blocks for each in together if each.blocks)
    if first.teachers:
        yield f"answers of {', '.join(first.teachers)}"
    if manifests and "seed" in manifests[0].config:
        yield f"seed {manifests[0].config['seed']}"


def _block_range(days: Iterable[Blocks]) -> str:
    blocks = sorted(days, key=lambda each: each.first)
    if not blocks:
        return ""
    first, last = blocks[0], blocks[-1]
    return f"blocks {_block(first.first, first.first_hash)} to {_block(last.last, last.last_hash)}"


def _block(number: int, block_hash: str | None) -> str:
    return f"{number} ({block_hash})" if block_hash else str(number)

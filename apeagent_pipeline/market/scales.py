"""Mean, standard deviation and quantiles of columns that are too long for memory.

The values lie in memory-mapped files: the system keeps of them in memory what fits. The results equal those of NumPy
for arrays in memory, bit for bit.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import polars as pl

_GRID = np.linspace(0.0, 1.0, 101)


class ColumnFiles:
    """Values of some columns on disk, appended table by table; a context manager that removes the files."""

    def __init__(self, columns: Sequence[str], folder: Path | None = None) -> None:
        """Open the files.

        Args:
            columns: Names of columns of floats.
            folder: Where a temporary folder is made; None: where the system keeps temporary files.
        """
        self._scratch = tempfile.TemporaryDirectory(dir=folder)
        self._paths = {name: Path(self._scratch.name) / f"{number}.f64" for number, name in enumerate(columns)}
        self._files = {name: path.open("wb") for name, path in self._paths.items()}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        self._scratch.cleanup()

    def append(self, table: pl.DataFrame) -> None:
        """Append the values of the columns of a table."""
        for name, file in self._files.items():
            file.write(table[name].to_numpy().astype(np.float64, copy=False).tobytes())

    def scales(self) -> dict[str, dict[str, Any]]:
        """Mean, standard deviation and the 101 quantiles of each column; at least one row was appended."""
        for file in self._files.values():
            file.flush()
        return {name: _scales(path) for name, path in self._paths.items()}


def _scales(path: Path) -> dict[str, Any]:
    values = np.memmap(path, dtype=np.float64, mode="r")
    copy = path.with_suffix(".work")
    # Each step writes into the second file, so that no temporary array has the length of the column.
    work = np.memmap(copy, dtype=np.float64, mode="w+", shape=values.shape)
    mean = values.mean()
    np.subtract(values, mean, out=work)
    np.multiply(work, work, out=work)
    std = np.sqrt(work.mean())
    np.copyto(work, values)
    quantiles = np.quantile(work, _GRID, overwrite_input=True)
    del work, values
    copy.unlink()
    return {"mean": float(mean), "std": float(std), "quantiles": [float(each) for each in quantiles]}

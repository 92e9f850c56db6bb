"""Swaps from files that other tools wrote: CSV, Parquet or JSON, one file or a folder of them.

`layouts` is the table of layouts, as data. `files` finds the files, `reading` opens them, `columns`, `values` and
`normalise` bring their rows into one form, `ordering` finds duplicates and the order of the chain, `evidence` holds
each row against what the V4 contract and the chain's clock say, `verdict` decides, `day_stream` gives each day to
`day_checks`, and `importing` does all that in turn. A row that is wrong is never repaired: nothing is read from an
archive that has one.
"""

from apeagent_pipeline.chain.archive.imported import DayNotes, Imported
from apeagent_pipeline.chain.archive.problems import ArchiveError
from apeagent_pipeline.chain.archive.swap_archive import SwapArchive

__all__ = ["ArchiveError", "DayNotes", "Imported", "SwapArchive"]

"""Files that are there whole or not at all."""

from pathlib import Path

import pytest

from apeagent_pipeline.atomic_files import replacing, write_atomically


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.json"
    write_atomically(target, "one\n")
    write_atomically(target, b"two\r\n")
    assert target.read_bytes() == b"two\r\n"
    assert list(target.parent.iterdir()) == [target]


def test_a_writer_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    write_atomically(target, "whole")
    with pytest.raises(OSError, match="disk full"), replacing(target) as temporary:
        temporary.write_text("ha")
        raise OSError("disk full")
    assert target.read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]

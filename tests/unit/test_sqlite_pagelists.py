"""Lists of page numbers in files behave like lists in memory."""

from __future__ import annotations

from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import LocalError
from crmbackup.engines.sqlite import pagelists
from crmbackup.engines.sqlite.pagelists import PageList, PageListWriter, PageMarks

PAGES = 50
lists = st.lists(st.lists(st.integers(1, PAGES + 2), max_size=9), min_size=1, max_size=6)


def content(pages: PageList) -> list[int]:
    return [number for piece in pages.pieces() for number in piece]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagelists, "_PIECE", 4)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written=lists, marked=st.sets(st.integers(1, PAGES)))
def test_what_was_written_is_read_compared_and_looked_up(
    tmp_path: Path, written: list[list[int]], marked: set[int]
) -> None:
    found = []
    with PageListWriter(tmp_path / "first") as writer:
        for numbers in written:
            start = writer.count
            for number in numbers:
                writer.add(array("I", [number]))
            found.append(writer.since(start))
    with PageListWriter(tmp_path / "second") as writer:
        writer.add(array("I", [7]))
        copies = [writer.copy(pages) for pages in found]
        writer.sync()
    assert [content(pages) for pages in found] == [content(pages) for pages in copies] == written

    changed = PageMarks(PAGES)
    changed.add(marked)
    for start in range(PAGES):
        assert content(copies[0].part(start, 3)) == written[0][start : start + 3]
    for pages, numbers in zip(copies, written, strict=True):
        assert pages.meets(changed) == any(number in marked or number > PAGES for number in numbers)
        for other, others in zip(found, written, strict=True):
            assert pages.same_as(other) == (numbers == others)


def test_a_list_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    with PageListWriter(tmp_path / "pages") as writer:
        writer.add(array("I", range(1, 11)))
        pages = writer.since(0)
    (tmp_path / "pages").write_bytes((tmp_path / "pages").read_bytes()[:-4])
    with pytest.raises(LocalError, match="pages"):
        content(pages)
    (tmp_path / "pages").unlink()
    with pytest.raises(LocalError, match="pages"):
        content(pages)

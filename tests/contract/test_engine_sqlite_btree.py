"""Pages that are walked by hand: what an incremental remembers of a table is what a walk by SQLite's dbstat gives."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from crmbackup.core.errors import SourceUnreadable
from crmbackup.engines.sqlite import reader
from crmbackup.engines.sqlite.pagelists import PageList
from crmbackup.engines.sqlite.reader import Source
from crmbackup.engines.sqlite.state import ParentState
from crmbackup.engines.sqlite.structure import Rewalked, Structure, Tree, read_structures
from crmbackup.operations.workers import ProcessWorkers
from tests.support_sqlite import Chain, connect, error_of, execute, image_of, spoil

PAGE = 512
#: Lengths of values at which SQLite begins to use overflow pages, and at which the last of them is full.
LENGTHS = "(i * 7919) % 3000"
STEP = 4611686018427


@pytest.fixture(scope="module")
def workers() -> Iterator[ProcessWorkers]:
    with ProcessWorkers(2) as workers:
        yield workers


@pytest.fixture
def chain(tmp_path: Path, workers: ProcessWorkers) -> Chain:
    return Chain(tmp_path / "crm.db", tmp_path, workers)


def fill(path: Path, reserved: int = 0) -> None:
    """A table with rows of every length, one with short rows, and a small one. reserved: bytes at the end of each page."""
    series = "WITH s(i) AS (SELECT -2000 UNION ALL SELECT i + 1 FROM s WHERE i < 2000)"
    with closing(connect(path)) as db:
        db.execute(f"PRAGMA page_size = {PAGE}; PRAGMA synchronous = OFF")
        # Connection.reserve_bytes is younger than the oldest apsw that we allow.
        wanted = ctypes.c_int(reserved)
        assert db.file_control("main", apsw.SQLITE_FCNTL_RESERVE_BYTES, ctypes.addressof(wanted))
        db.execute(
            "CREATE TABLE notes(id INTEGER PRIMARY KEY, t TEXT); CREATE TABLE short(t TEXT); CREATE TABLE few(t TEXT);"
            f"{series} INSERT INTO notes SELECT i * {STEP}, substr(hex(zeroblob(1500)), 1, abs({LENGTHS})) FROM s;"
            f"{series} INSERT INTO short SELECT i FROM s;"
            "INSERT INTO few VALUES('one'), (hex(zeroblob(2000)))"
        )
    assert path.read_bytes()[20] == reserved


def numbers(pages: PageList) -> list[int]:
    return [number for piece in pages.pieces() for number in piece]


def lists(structure: Structure) -> list[object]:
    return [numbers(structure.interior), *((part.low, part.high, numbers(part.pages)) for part in structure.parts)]


@pytest.mark.parametrize("reserved", [0, 32])
def test_both_walks_give_the_same_pages_in_the_same_order(tmp_path: Path, reserved: int) -> None:
    path = tmp_path / "crm.db"
    fill(path, reserved)
    source = Source(path, 1.0, encrypted=False)
    with closing(connect(path)) as db:
        roots = dict(db.execute("SELECT name, rootpage FROM sqlite_schema"))
    reader.join(source)
    try:
        for name, root in roots.items():
            tree = Tree(name, root, segmented=True)
            (walked,) = read_structures(source, [tree], PAGE, tmp_path / "walked")
            assert isinstance(walked, Structure)
            assert len(walked.parts) > 1 or name == "few"
            stale = tuple(part.pages.first() for part in walked.parts)
            (again,) = read_structures(source, [tree._replace(stale=stale)], PAGE, tmp_path / "again")
            assert isinstance(again, Rewalked)
            assert [numbers(pages) for pages in again.pages] == [numbers(part.pages) for part in walked.parts]
            assert again.longest == walked.longest
    finally:
        reader.leave()


CHANGES = {
    "a row": "UPDATE notes SET t = 'x' WHERE id = 0",
    "a longer row": "UPDATE notes SET t = hex(zeroblob(5000)) WHERE id = 0",
    "some rows less": f"DELETE FROM notes WHERE id BETWEEN 0 AND 30 * {STEP}",
    "some rows more": f"INSERT INTO notes SELECT id + 1, t FROM notes WHERE id BETWEEN 0 AND 9 * {STEP}",
    "a longer table": "INSERT INTO short SELECT t FROM short LIMIT 200",
    "a small table that grows": "INSERT INTO few SELECT t FROM short",
    "hardly anything left": "DELETE FROM notes WHERE id != 0",
}


def test_a_chain_remembers_what_a_full_snapshot_finds(chain: Chain) -> None:
    fill(chain.path)
    chain.take()
    for what, change in CHANGES.items():
        execute(chain.path, change)
        taken = chain.take()
        chain.prove(taken, image_of(chain.path))
        remembered = ParentState(taken.directory).tables
        found = ParentState(chain.take(full=True).directory).tables
        chain.last = taken
        for name, table in found.items():
            assert lists(remembered[name].structure) == lists(table.structure), f"{what}: {name}"
            assert remembered[name].structure.longest >= table.structure.longest


@pytest.mark.parametrize("damage", ["leaf", "overflow"])
def test_damage_in_what_changed_is_told(chain: Chain, damage: str) -> None:
    fill(chain.path)
    chain.take()
    query = "SELECT pageno FROM dbstat WHERE name = 'notes' AND pagetype = ? ORDER BY pageno LIMIT 1 OFFSET 40"
    with closing(connect(chain.path)) as db:
        ((page,),) = db.execute(query, (damage,)).fetchall()
    spoil(chain.path, int(str(page)), b"\xff", PAGE)
    error = error_of(chain.take)
    assert isinstance(error, SourceUnreadable)
    assert "notes" in str(error)

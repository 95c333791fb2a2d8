"""What a host keeps between runs: it reads back whole or counts as lost, and losing any of it costs one full snapshot."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import Locked
from crmbackup.operations.state import PolicyState, Remembered
from crmbackup.repository.chunks import ChunkRef, PackInfo
from tests.support_repo import Site
from tests.support_traps import start

PACKS = (PackInfo("ab" * 32, 1000), PackInfo("cd" * 32, 2000))
CHUNKS = (ChunkRef(b"1" * 32, PACKS[0].pack_id, 0, 10, 20, 30), ChunkRef(b"2" * 32, PACKS[1].pack_id, 7, 1, 2, 3))
STORED = {pack.pack_id: pack.size for pack in PACKS}


@pytest.fixture
def state(tmp_path: Path) -> PolicyState:
    state = PolicyState(tmp_path, "repository", "crm")
    with state.locked():
        state.chunk_key()
    return state


def remember(state: PolicyState, snapshot_id: str = "snapshot1", rows: int | None = 5) -> Path:
    directory = state.prepare(snapshot_id)
    state.remember(
        directory,
        snapshot_id=snapshot_id,
        key="snapshots/crm/x",
        generation="generation1",
        packs=PACKS,
        chunks=CHUNKS,
        layout={"extents": "abc", "pages": [1, 2]},
        rows=rows,
    )
    return directory


@pytest.mark.parametrize("rows", [None, 0, 5])
def test_what_is_remembered_reads_back(state: PolicyState, rows: int | None) -> None:
    assert state.remembered() is None
    directory = remember(state, rows=rows)
    expected = Remembered(
        snapshot_id="snapshot1",
        key="snapshots/crm/x",
        generation="generation1",
        packs=PACKS,
        chunks=CHUNKS,
        layout={"extents": "abc", "pages": [1, 2]},
        rows=rows,
        directory=directory,
    )
    assert state.remembered() == expected
    again = PolicyState(state.directory.parents[1], "repository", "crm")
    assert (again.remembered(), again.chunk_key()) == (expected, state.chunk_key())


def test_policies_and_repositories_share_nothing(tmp_path: Path) -> None:
    states = [PolicyState(tmp_path, *names) for names in (("a", "crm"), ("a", "erp"), ("b", "crm"))]
    for state in states:
        with state.locked():
            state.chunk_key()
    assert len({state.chunk_key() for state in states}) == 3


def test_only_the_owner_may_look(state: PolicyState) -> None:
    directory = remember(state)
    for path in [state.directory, directory]:
        assert path.stat().st_mode & 0o777 == 0o700
    for path in [state.directory / "chunk.key", state.directory / "current", directory / "parent.json"]:
        assert path.stat().st_mode & 0o777 == 0o600


def test_preparing_removes_leftovers_and_keeps_what_is_remembered(state: PolicyState) -> None:
    kept = remember(state)
    (state.prepare("interrupted") / "pages.bin").write_bytes(b"x")
    fresh = state.prepare("snapshot2")
    assert {path for path in state.directory.iterdir() if path.is_dir()} == {kept, fresh}
    assert list(fresh.iterdir()) == []
    assert state.remembered() is not None


def test_every_damaged_byte_of_the_record_makes_it_lost(state: PolicyState) -> None:
    directory = remember(state)
    path = directory / "parent.json"
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert state.remembered() is None
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place])
        assert state.remembered() is None
    path.write_bytes(whole + b"\n")
    assert state.remembered() is None
    path.write_bytes(whole)
    assert state.remembered() is not None


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=100))
def test_any_pointer_is_followed_or_lost(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    state = PolicyState(tmp_path_factory.mktemp("state"), "repository", "crm")
    with state.locked():
        state.chunk_key()
        remember(state)
    (state.directory / "current").write_bytes(data)
    found = state.remembered()
    assert found is None or data.strip() == b"snapshot1"


# The chunk key. All chunks of a snapshot have one, so what was written under another must not be reused.


def lose_key(path: Path) -> None:
    path.unlink()


def damage_key(path: Path) -> None:
    path.write_text("zz")


def shorten_key(path: Path) -> None:
    path.write_text("ab" * 31)


def replace_key(path: Path) -> None:
    path.write_text("ab" * 32)


KEY_FAULTS = [lose_key, damage_key, shorten_key, replace_key]


@pytest.mark.parametrize("fault", KEY_FAULTS)
def test_with_its_key_all_that_is_remembered_is_lost(state: PolicyState, fault: Callable[[Path], None]) -> None:
    remember(state)
    state.note_pack(PACKS[0], CHUNKS[:1])
    before = state.chunk_key()
    fault(state.directory / "chunk.key")
    assert state.remembered() is None
    after = state.chunk_key()
    assert (len(after), after != before) == (32, True)
    assert state.chunk_key() == after
    assert state.remembered() is None
    assert state.pending(STORED, set()) == {}


# Packs of a run that was interrupted


def test_noted_packs_are_found_while_they_are_in_storage(state: PolicyState) -> None:
    for pack, chunk in zip(PACKS, CHUNKS, strict=True):
        state.note_pack(pack, [chunk])
    both = {chunk.chunk_id: chunk for chunk in CHUNKS}
    assert state.pending(STORED, set()) == both
    assert list(state.pending({PACKS[1].pack_id: 2000}, set())) == [CHUNKS[1].chunk_id], "one pack is gone"
    assert list(state.pending({**STORED, PACKS[0].pack_id: 999}, set())) == [CHUNKS[1].chunk_id], "one was cut"
    assert list(state.pending(STORED, {PACKS[1].pack_id})) == [CHUNKS[0].chunk_id], "one will be deleted"
    state.forget_pending()
    assert state.pending(STORED, set()) == {}
    state.forget_pending()


def test_a_note_cut_by_a_crash_costs_only_itself(state: PolicyState) -> None:
    state.note_pack(PACKS[0], CHUNKS[:1])
    path = state.directory / "pending.jsonl"
    first = path.read_bytes()
    state.note_pack(PACKS[1], CHUNKS[1:])
    both = path.read_bytes()
    for size in range(len(first), len(both) - 1):
        path.write_bytes(both[:size])
        found = state.pending(STORED, set())
        assert list(found) == [CHUNKS[0].chunk_id]
    state.note_pack(PACKS[1], CHUNKS[1:])  # behind the cut line
    state.note_pack(PACKS[1], CHUNKS[1:])
    assert state.pending(STORED, set()) == {chunk.chunk_id: chunk for chunk in CHUNKS}


@settings(deadline=None, max_examples=100)
@given(data=st.binary(max_size=200) | st.text('{}[]":,pack123\n').map(str.encode))
def test_any_notes_are_read_or_left_out(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    state = PolicyState(tmp_path_factory.mktemp("state"), "repository", "crm")
    with state.locked():
        state.chunk_key()
    (state.directory / "pending.jsonl").write_bytes(data)
    assert state.pending(STORED, set()) == {}


# The lock


def hold(state: PolicyState, held: Path) -> None:
    with state.locked():
        held.touch()
        os.read(os.open(held.with_name("pipe"), os.O_RDONLY), 1)


def test_the_lock_names_its_holder_and_ends_with_it(state: PolicyState, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    process = start(hold, state, tmp_path / "held")
    with (tmp_path / "pipe").open("wb"):  # opens when the process has the lock
        with pytest.raises(Locked) as caught, state.locked():
            raise AssertionError("two runs at once")
        assert str(process.pid) in caught.value.what
        process.kill()
        process.join()
        with state.locked():
            pass
    with state.locked():
        pass


# What it costs


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site.make(tmp_path_factory.mktemp("state") / "site")
    site.fill(rows=200)
    site.backup("full")
    site.fill(rows=5)
    site.backup()
    return site


def losses() -> dict[str, Callable[[PolicyState], None]]:
    def of_record(name: str, change: Callable[[Path], object]) -> Callable[[PolicyState], None]:
        def lose(state: PolicyState) -> None:
            found = state.remembered()
            assert found
            change(found.directory / name)

        return lose

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    names = ["parent.json", "pages.bin", "blocks.bin", "tables.json", "table-pages.bin"]
    found = {f"{name} {change.__name__}": of_record(name, change) for name in names for change in (flip, Path.unlink)}
    found |= {f.__name__: lambda state, f=f: f(state.directory / "chunk.key") for f in KEY_FAULTS}
    found["no pointer"] = lambda state: (state.directory / "current").unlink()
    found["no directory"] = lambda state: shutil.rmtree(state.directory)
    return found


@pytest.mark.parametrize("loss", losses())
def test_lost_state_costs_one_full_and_never_data(twice: Site, tmp_path: Path, loss: str) -> None:
    site = twice.copy(tmp_path / "site")
    losses()[loss](site.state)
    expected = site.fill(rows=5)
    taken = site.backup("incremental")
    assert taken.header.kind == "full"
    assert taken.why_full
    assert site.restored(taken.header) == expected
    assert site.check().findings == ()
    expected = site.fill(rows=5)
    taken = site.backup("incremental")
    assert (taken.header.kind, taken.why_full) == ("incremental", "")
    assert site.restored(taken.header) == expected

"""The audit log: what was changed, cut, moved or put in is found, and a crash in the middle of a line is not."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core import audit, files
from crmbackup.core.audit import CHAIN_BROKEN, AuditLog, Head
from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import DiskFull, LocalError


def log_at(path: Path) -> AuditLog:
    return AuditLog(path / "audit.log", SystemClock())


def add(log: AuditLog, event: str = "restore", **data: object) -> Head:
    return log.append(event, data, policy="crm", run="ab" * 8, operator="ann", host="crm1")


def filled(path: Path, count: int = 5) -> AuditLog:
    log = log_at(path)
    for number in range(count):
        add(log, number=number, name="Zürich\n")
    return log


def test_lines_are_json_and_follow_each_other(tmp_path: Path) -> None:
    log = filled(tmp_path)
    entries = list(log.entries())
    assert [entry["n"] for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry["prev"] for entry in entries] == ["0" * 64, *(entry["hash"] for entry in entries[:-1])]
    assert (entries[2]["event"], entries[2]["operator"], entries[2]["policy"]) == ("restore", "ann", "crm")
    assert entries[2]["data"] == {"number": 2, "name": "Zürich\n"}
    found = log.verify()
    assert (found.entries, found.head, found.flaws) == (5, Head(5, entries[-1]["hash"]), ())
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_a_name_that_is_not_utf_8_is_noted(tmp_path: Path) -> None:
    """A restore to such a file must not fail for it."""
    log = log_at(tmp_path)
    add(log, target=os.fsdecode(b"/srv/caf\xe9.db"), snapshots=["a", os.fsdecode(b"\xff")])
    (entry,) = log.entries()
    assert entry["data"] == {"target": "/srv/caf\\udce9.db", "snapshots": ["a", "\\udcff"]}
    assert log.verify().flaws == ()


def test_an_empty_log_is_whole(tmp_path: Path) -> None:
    assert log_at(tmp_path).verify().flaws == ()
    assert list(log_at(tmp_path).entries()) == []


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> tuple[AuditLog, AuditLog]:
    return filled(tmp_path_factory.mktemp("one")), filled(tmp_path_factory.mktemp("other"))


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_is_done_to_the_file_is_found(logs: tuple[AuditLog, AuditLog], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        log = log_at(Path(directory))
        for name in ("audit.log", "audit.head"):
            shutil.copy(logs[0].path.with_name(name), directory)
        before = log.path.read_bytes()
        lines = before.splitlines(keepends=True)
        other = logs[1].path.read_bytes().splitlines(keepends=True)
        damage = data.draw(st.sampled_from(["byte", "cut", "drop", "swap", "repeat", "foreign", "space", "truncate"]))
        at = data.draw(st.integers(0, len(lines) - 1))
        if damage == "byte":
            place = data.draw(st.integers(0, len(before) - 1))
            value = data.draw(st.integers(0, 255).filter(lambda value: value != before[place]))
            after = before[:place] + bytes([value]) + before[place + 1 :]
        elif damage == "truncate":
            after = before[: data.draw(st.integers(0, len(before) - 1))]
        else:
            if damage == "cut":
                lines = lines[:at]
            elif damage == "drop":
                del lines[at]
            elif damage == "swap":
                to = data.draw(st.integers(0, len(lines) - 1).filter(lambda to: to != at))
                lines[at], lines[to] = lines[to], lines[at]
            elif damage == "repeat":
                lines.insert(data.draw(st.integers(0, len(lines))), lines[at])
            elif damage == "foreign":
                lines.insert(data.draw(st.integers(0, len(lines))), other[at])
            else:
                lines[at] = lines[at].replace(b'":', b'": ', 1)
            after = b"".join(lines)
        log.path.write_bytes(after)
        assert log.verify().flaws != ()
        # And it stays found when crmbackup goes on writing.
        add(log)
        assert log.verify().flaws != ()


def test_a_log_that_was_rewritten_with_its_head_is_told_by_a_head_noted_elsewhere(tmp_path: Path) -> None:
    noted = filled(tmp_path).verify().head
    for name in ("audit.log", "audit.head"):
        (tmp_path / name).unlink()
    log = filled(tmp_path, 3)
    assert log.verify().flaws == ()
    assert log.verify(noted).flaws == ("entries 4 to 5 are missing at the end",)
    add(log)
    assert log.verify(noted).flaws == ("entry 5 is missing at the end",)
    filled(tmp_path, 4)
    assert log.verify(noted).flaws == ("entry 5 is not the one whose hash was noted",)


def test_a_log_or_head_that_is_gone_is_said_in_the_log(tmp_path: Path) -> None:
    log = filled(tmp_path)
    log.path.unlink()
    assert log.verify().flaws == ("entries 1 to 5 are missing at the end",)
    add(log)
    assert [entry["event"] for entry in log.entries()] == [CHAIN_BROKEN, "restore"]
    assert log.verify().flaws == ("line 1 was written by crmbackup when it found that the log does not end as it did",)
    (tmp_path / "audit.head").write_text("{}")
    assert any("audit.head is missing" in flaw for flaw in log.verify().flaws)
    add(log)
    assert "there is no note of the last line" in log.verify().flaws[-1]


def test_a_crash_in_the_middle_of_a_line_is_no_flaw(tmp_path: Path) -> None:
    log = filled(tmp_path)
    whole = log.path.read_bytes()
    for rest in (b"{", whole.splitlines()[0]):
        log.path.write_bytes(whole + rest)
        add(log)
        assert log.verify().flaws == ()
        log.path.write_bytes(whole)
        log._note(Head(5, json.loads(whole.splitlines()[-1])["hash"]))
    # The line was made, its note was not.
    add(log)
    log._note(Head(5, json.loads(whole.splitlines()[-1])["hash"]))
    add(log)
    assert log.verify().flaws == ()


def test_a_line_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    log = filled(tmp_path, 1)
    add(log, names=["x" * 100] * 1000)
    add(log)
    assert log.verify().flaws == ()


def _add_many(path: Path) -> None:
    for _ in range(4):
        add(log_at(path))


def test_processes_take_turns(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert log_at(tmp_path).verify().entries == 16
    assert log_at(tmp_path).verify().flaws == ()


def test_a_lock_that_is_never_given_back_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    log = filled(tmp_path)
    with log.path.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match="keeps it locked"):
            add(log)
    assert log.verify().entries == 5


def test_a_full_disk_leaves_the_log_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = filled(tmp_path)
    real = os.write
    calls = []

    def write(descriptor: int, data: bytes) -> int:
        calls.append(data)
        if len(calls) == 1:
            return real(descriptor, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audit.os, "write", write)
    with pytest.raises(DiskFull):
        add(log)
    monkeypatch.undo()
    assert log.verify().flaws == ()
    assert log.verify().entries == 5


def test_what_stands_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "audit.log").mkdir()
    with pytest.raises(LocalError):
        add(log_at(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError):
        add(log_at(tmp_path / "file"))

"""The generated CRM: what other tests and the demo build on."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import zstandard

from scripts import crmgen

PROGRAM = Path(__file__).parents[2] / "scripts" / "crmgen.py"
ROWS = 120


@pytest.fixture
def crm(tmp_path: Path) -> Path:
    path = tmp_path / "crm.db"
    crmgen.generate(path, ROWS, seed=7)
    return path


def one(path: Path, sql: str) -> object:
    with closing(apsw.Connection(str(path))) as db:
        # As any reader: who opens or leaves the database first or last holds it for a moment.
        db.set_busy_timeout(crmgen.BUSY_MS)
        return db.execute(sql).get


def column(path: Path, sql: str) -> list[object]:
    with closing(apsw.Connection(str(path))) as db:
        return [row[0] for row in db.execute(sql)]


def assert_sound(path: Path) -> None:
    with closing(apsw.Connection(str(path))) as db:
        assert db.pragma("integrity_check") == "ok"
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
        db.execute("INSERT INTO search(search) VALUES('integrity-check')").fetchall()


def test_the_same_seed_gives_the_same_bytes(crm: Path, tmp_path: Path) -> None:
    again, other = tmp_path / "again.db", tmp_path / "other.db"
    crmgen.generate(again, ROWS, seed=7)
    crmgen.generate(other, ROWS, seed=8)
    assert again.read_bytes() == crm.read_bytes()
    assert other.read_bytes() != crm.read_bytes()


def test_a_work_day_is_deterministic_and_sound(crm: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.db"
    again.write_bytes(crm.read_bytes())
    before = crm.read_bytes()
    assert crmgen.work_day(crm, seed=1) == crmgen.work_day(again, seed=1)
    assert crm.read_bytes() == again.read_bytes() != before
    assert_sound(crm)


def test_many_work_days_change_every_kind_of_table(crm: Path) -> None:
    changing = ["contacts", "leads", "opportunities", "activities", "emails", "notes", "contact_tags", "import_lines"]
    sums = [f"SELECT group_concat(quote(t.{key})) FROM {table} t" for table, key in
            [(t, "contact_id" if t == "contact_tags" else "rowid") for t in changing if t != "opportunities"]]  # fmt: skip
    sums += ["SELECT group_concat(stage) FROM opportunities", "SELECT max(id) FROM audit_trail",
             "SELECT group_concat(rowid) FROM search"]  # fmt: skip
    before = [one(crm, sql) for sql in sums]
    for _ in range(10):
        crmgen.work_day(crm, seed=1)  # the same seed again: each day is another one
    after = [one(crm, sql) for sql in sums]
    assert [sql for sql, a, b in zip(sums, before, after, strict=True) if a == b] == []
    assert_sound(crm)


@pytest.mark.parametrize(("wal", "journal"), [(True, "wal"), (False, "delete")])
@pytest.mark.parametrize("page_size", [512, 4096, 65536])
def test_the_file_has_the_form_that_was_asked_for(tmp_path: Path, page_size: int, wal: bool, journal: str) -> None:
    path = tmp_path / "crm.db"
    crmgen.generate(path, 30, seed=1, page_size=page_size, wal=wal)
    assert one(path, "PRAGMA page_size") == page_size
    assert one(path, "PRAGMA journal_mode") == journal
    assert one(path, "PRAGMA user_version") == crmgen.USER_VERSION
    assert one(path, "PRAGMA application_id") == crmgen.APPLICATION_ID
    assert one(path, "SELECT count(*) FROM contacts") == 30
    assert_sound(path)


@pytest.mark.parametrize("rows", [0, 1, 2, 19])
def test_the_smallest_databases_work_too(tmp_path: Path, rows: int) -> None:
    path = tmp_path / "crm.db"
    crmgen.generate(path, rows, seed=3)
    crmgen.work_day(path, seed=3)
    assert_sound(path)


def test_every_feature_that_a_backup_must_keep_is_there(crm: Path) -> None:
    assert one(crm, "SELECT count(*) FROM pragma_table_list WHERE wr AND name = 'contact_tags'") == 1
    assert one(crm, "SELECT count(*) FROM pragma_table_list WHERE strict AND name = 'settings'") == 1
    assert set(column(crm, "SELECT DISTINCT typeof(value) FROM settings")) == {
        "integer",
        "real",
        "text",
        "blob",
        "null",
    }
    assert column(crm, "SELECT hidden FROM pragma_table_xinfo('contacts') WHERE name = 'full_name'") == [2]
    assert column(crm, "SELECT hidden FROM pragma_table_xinfo('opportunities') WHERE name = 'weighted'") == [3]
    assert one(crm, "SELECT count(*) FROM sqlite_schema WHERE type = 'view'") == 2
    assert one(crm, "SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'") == 2
    assert one(crm, "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND sql LIKE '%WHERE%'") == 1
    assert one(crm, "SELECT count(*) FROM sqlite_schema WHERE type = 'index' AND sql LIKE '%lower(%'") == 1
    assert one(crm, "SELECT max(rowid) > count(*) FROM import_lines") == 1
    assert one(crm, "SELECT count(*) > 0 FROM audit_trail") == 1
    assert one(crm, "SELECT count(*) > 0 FROM search('active OR a*')") == 1
    assert one(crm, "SELECT count(*) > 0 FROM open_pipeline") == 1
    assert one(crm, "SELECT count(*) > 0 FROM dbstat WHERE pagetype = 'overflow' AND name = 'notes'") == 1
    assert one(crm, "SELECT count(*) > 0 FROM accounts WHERE parent_id IS NOT NULL") == 1


def test_text_is_of_many_languages_and_compresses_like_text(tmp_path: Path) -> None:
    path = tmp_path / "crm.db"
    crmgen.generate(path, 1_000, seed=1)
    content = path.read_bytes()
    ratio = len(zstandard.ZstdCompressor(level=3).compress(content)) / len(content)
    assert 0.30 < ratio < 0.45
    names = " ".join(str(name) for name in column(path, "SELECT full_name FROM contacts"))
    for sign in "üßÉñŁşéЁή":
        assert sign.lower() in names.lower()
    assert any("\u4e00" <= sign <= "\u9fff" for sign in names)
    assert any("\u0600" <= sign <= "\u06ff" for sign in names)
    assert "🚀" in " ".join(str(subject) for subject in column(path, "SELECT subject FROM activities"))


@pytest.mark.parametrize("wal", [True, False])
def test_the_writer_writes_until_told_to_stop(tmp_path: Path, wal: bool) -> None:
    path = tmp_path / "crm.db"
    crmgen.generate(path, ROWS, seed=1, wal=wal)
    enough = iter(range(40))
    assert crmgen.write_forever(path, lambda: next(enough, None) is None, seed=5) == 40
    rest = iter(range(40))
    assert crmgen.write_forever(path, lambda: next(rest, None) is None, seed=5) == 40  # no clash with its first run
    assert_sound(path)


def test_two_writers_and_a_reader_at_the_same_time(crm: Path) -> None:
    stop = threading.Event()
    commits: list[int] = []
    writers = [threading.Thread(target=lambda s=seed: commits.append(crmgen.write_forever(crm, stop.is_set, s)))
               for seed in (1, 2)]  # fmt: skip
    start = one(crm, "SELECT max(id) FROM emails")
    for writer in writers:
        writer.start()
    try:
        while one(crm, "SELECT max(id) FROM emails") == start:
            assert all(writer.is_alive() for writer in writers)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert len(commits) == 2
    assert sum(commits) > 0
    assert_sound(crm)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True)


def test_the_program_creates_works_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "crm.db"
    created = run("create", str(path), "--rows", "40", "--seed", "3", "--journal", "delete")
    assert (created.returncode, created.stderr) == (0, "")
    assert "40 contacts" in created.stdout
    assert one(path, "PRAGMA journal_mode") == "delete"
    assert run("workday", str(path), "--seed", "1").returncode == 0
    assert run("write", str(path), "--seconds", "0.1").returncode == 0
    assert_sound(path)


def test_the_program_never_replaces_a_file(crm: Path) -> None:
    before = crm.read_bytes()
    refused = run("create", str(crm), "--rows", "40")
    assert refused.returncode == 1
    assert "is there already" in refused.stderr
    assert crm.read_bytes() == before


def test_the_program_says_when_there_is_no_database(tmp_path: Path) -> None:
    refused = run("workday", str(tmp_path / "absent.db"))
    assert refused.returncode == 1
    assert "unable to open" in refused.stderr
    assert not (tmp_path / "absent.db").exists()

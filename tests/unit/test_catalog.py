from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.catalog.catalog import ERROR_TEXT_LENGTH, Catalog
from crmbackup.catalog.records import Drill, Run, Snapshot
from crmbackup.core.errors import LocalError

START = datetime(2026, 7, 1, 3, 0, 0, 123456, tzinfo=UTC)
RUN = Run(
    run_id="r1",
    policy="crm-prod",
    command="backup",
    started_at=START,
    outcome="done",
    host="crm-01",
    finished_at=START + timedelta(seconds=90, microseconds=1),
    repository_id="repo",
    kind="full",
    snapshot_id="s1",
    bytes_read=2**40,
    bytes_added=2**33,
)
SNAPSHOT = Snapshot("repo", "s1", "crm-prod", "full", START, START, 2**40, 2**33, 7, "crm-01", "snapshots/crm-prod/s1")
DRILL = Drill(
    "d1", "crm-prod", START, START, "passed", "passed", "met", "repo", "s1", 74.6, 3600.125, "/r.json", "ab" * 32
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
#: A time that comes twice when clocks are set back equals no time of another zone (PEP 495): such could not be compared.
MOMENTS = st.datetimes(
    START.replace(year=1970, tzinfo=None), START.replace(year=2200, tzinfo=None), timezones=st.timezones()
).filter(lambda moment: moment == moment.astimezone(UTC))


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/catalog.db"


@pytest.fixture
def catalog(url: str) -> Iterator[Catalog]:
    catalog = Catalog(url)
    yield catalog
    catalog.close()


def test_what_is_recorded_is_there_when_it_is_opened_again(url: str) -> None:
    first = Catalog(url)
    assert first.history == "new"
    first.record(RUN)
    first.record(SNAPSHOT)
    first.record(DRILL)
    first.close()
    second = Catalog(url)
    assert second.history == "kept"
    assert second.runs() == [RUN]
    assert second.snapshots() == [SNAPSHOT]
    assert second.drills() == [DRILL]
    second.close()


def test_an_empty_catalog(catalog: Catalog) -> None:
    assert catalog.runs() == []
    assert catalog.snapshots() == []
    assert catalog.drills() == []
    assert catalog.last_drill("crm-prod") is None


def test_a_run_recorded_again_replaces_itself(catalog: Catalog) -> None:
    started = Run("r1", "crm-prod", "backup", START, "running", "crm-01")
    catalog.record(started)
    assert catalog.runs() == [started]
    catalog.record(RUN)
    assert catalog.runs() == [RUN]


def test_snapshots_and_drills_recorded_again_replace_themselves(catalog: Catalog) -> None:
    catalog.record(SNAPSHOT)
    catalog.record(replace(SNAPSHOT, added=1))
    catalog.record(replace(SNAPSHOT, repository_id="copy"))
    assert {row.repository_id: row.added for row in catalog.snapshots()} == {"repo": 1, "copy": 2**33}
    catalog.record(DRILL)
    catalog.record(replace(DRILL, validation="failed"))
    assert [row.validation for row in catalog.drills()] == ["failed"]


def test_the_newest_come_first_and_policies_are_kept_apart(catalog: Catalog) -> None:
    for number, policy in enumerate(["crm-prod", "crm-test", "CRM-PROD", "crm-prod"]):
        moment = START + timedelta(days=number)
        catalog.record(replace(RUN, run_id=f"r{number}", policy=policy, started_at=moment))
        catalog.record(replace(SNAPSHOT, snapshot_id=f"s{number}", policy=policy, captured_at=moment))
        catalog.record(replace(DRILL, drill_id=f"d{number}", policy=policy, started_at=moment))
    assert [row.run_id for row in catalog.runs()] == ["r3", "r2", "r1", "r0"]
    assert [row.run_id for row in catalog.runs(limit=2)] == ["r3", "r2"]
    assert [row.run_id for row in catalog.runs("crm-prod")] == ["r3", "r0"]
    assert [row.run_id for row in catalog.runs(policy="crm-prod", limit=1)] == ["r3"]
    assert [row.snapshot_id for row in catalog.snapshots("crm-test")] == ["s1"]
    assert [row.drill_id for row in catalog.drills("crm-prod")] == ["d3", "d0"]
    last = catalog.last_drill("crm-prod")
    assert last is not None
    assert last.drill_id == "d3"


def test_runs_of_the_same_moment_come_last_recorded_first(catalog: Catalog) -> None:
    for number in range(3):
        catalog.record(replace(RUN, run_id=f"r{number}"))
    assert [row.run_id for row in catalog.runs()] == ["r2", "r1", "r0"]


def test_a_rebuild_replaces_one_repository_only(catalog: Catalog) -> None:
    for repository in ("repo", "copy"):
        catalog.record(replace(SNAPSHOT, repository_id=repository))
        catalog.record(replace(DRILL, drill_id=f"d-{repository}", repository_id=repository))
    catalog.record(replace(DRILL, drill_id="d-none", repository_id=None))
    snapshots = [replace(SNAPSHOT, snapshot_id=f"n{number:04}") for number in range(2500)]
    catalog.replace_snapshots("repo", snapshots)
    catalog.replace_drills("repo", [])
    assert {row.snapshot_id for row in catalog.snapshots()} == {row.snapshot_id for row in snapshots} | {"s1"}
    assert {row.drill_id for row in catalog.drills()} == {"d-copy", "d-none"}


def test_a_rebuild_that_fails_changes_nothing(catalog: Catalog) -> None:
    catalog.record(SNAPSHOT)
    with pytest.raises(ValueError, match="repository repo"):
        catalog.replace_snapshots("repo", [replace(SNAPSHOT, repository_id="other")])
    naive = replace(SNAPSHOT, snapshot_id="n", captured_at=START.replace(tzinfo=None))
    with pytest.raises(ValueError, match="captured_at"):
        catalog.replace_snapshots("repo", [replace(SNAPSHOT, snapshot_id="m"), naive])
    with pytest.raises(LocalError):
        catalog.replace_snapshots("repo", [replace(SNAPSHOT, snapshot_id="m"), replace(SNAPSHOT, size=2**70)])
    assert catalog.snapshots() == [SNAPSHOT]


@settings(deadline=None, max_examples=40)
@given(moment=MOMENTS, text=TEXT, number=st.integers(-(2**63), 2**63 - 1), seconds=st.floats(allow_nan=False))
def test_every_value_comes_back(moment: datetime, text: str, number: int, seconds: float) -> None:
    catalog = Catalog("sqlite://")
    run = replace(RUN, policy=text, started_at=moment, error_text=text, bytes_read=number)
    drill = replace(DRILL, finished_at=moment, rto_seconds=seconds, report_path=text)
    catalog.record(run)
    catalog.record(drill)
    (found,) = catalog.runs(policy=text)
    # Python calls moments in two zones unequal where a clock is turned back, so both are told in UTC.
    assert found == replace(run, started_at=moment.astimezone(UTC))
    assert found.started_at.tzinfo is UTC
    assert catalog.drills() == [replace(drill, finished_at=moment.astimezone(UTC))]
    catalog.close()


def test_moments_of_other_zones_are_sorted_by_the_moment(catalog: Catalog) -> None:
    east = timezone(timedelta(hours=9))
    catalog.record(replace(RUN, run_id="early", started_at=datetime(2026, 7, 1, 8, tzinfo=east)))
    catalog.record(replace(RUN, run_id="late", started_at=datetime(2026, 7, 1, 1, tzinfo=UTC)))
    assert [row.run_id for row in catalog.runs()] == ["late", "early"]
    assert catalog.runs()[1].started_at == datetime(2026, 6, 30, 23, tzinfo=UTC)


def test_a_naive_moment_is_refused(catalog: Catalog) -> None:
    with pytest.raises(ValueError, match="started_at"):
        catalog.record(replace(RUN, started_at=START.replace(tzinfo=None)))


def test_texts_that_databases_refuse_are_stored_as_escapes(catalog: Catalog) -> None:
    catalog.record(replace(RUN, error_text="caf\udce9 \0" + "x" * 10_000))
    text = catalog.runs()[0].error_text or ""
    assert text.startswith("caf\\udce9 \\0x")
    assert len(text) == ERROR_TEXT_LENGTH


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "state" / "deep" / "catalog.db"
    Catalog(f"sqlite:///{path}").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_tables_of_others_in_the_same_database_are_left_alone(tmp_path: Path, url: str) -> None:
    with sqlite3.connect(tmp_path / "catalog.db") as other:
        other.execute("CREATE TABLE runs (x)")
        other.execute("INSERT INTO runs VALUES (1)")
        other.execute("CREATE TABLE crmbackup_catalog (version INTEGER PRIMARY KEY)")
    other.close()
    Catalog(url).close()
    with sqlite3.connect(tmp_path / "catalog.db") as other:
        assert other.execute("SELECT x FROM runs").fetchall() == [(1,)]
    other.close()


WRITER = """
import sys
from dataclasses import replace
from crmbackup.catalog.catalog import Catalog
from tests.unit.test_catalog import RUN, SNAPSHOT
print("ready", flush=True)
sys.stdin.readline()
catalog = Catalog(sys.argv[1])
for number in range(25):
    catalog.record(replace(RUN, run_id=f"{sys.argv[2]}-{number}"))
    catalog.replace_snapshots(sys.argv[2], [replace(SNAPSHOT, repository_id=sys.argv[2], added=number)])
    catalog.runs(limit=3)
catalog.close()
"""


def test_processes_that_create_and_write_at_once_lose_nothing(url: str) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, url, f"w{number}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(4)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=120)
    assert [writer.returncode for writer in writers] == [0, 0, 0, 0]
    catalog = Catalog(url)
    assert len(catalog.runs()) == 100
    assert {row.repository_id: row.added for row in catalog.snapshots()} == {f"w{n}": 24 for n in range(4)}
    catalog.close()


def test_threads_share_a_catalog(catalog: Catalog) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: catalog.record(replace(RUN, run_id=str(n))), range(40)))
    assert len(catalog.runs()) == 40


def test_a_reader_does_not_wait_for_a_writer(tmp_path: Path, catalog: Catalog) -> None:
    catalog.record(RUN)
    writer = sqlite3.connect(tmp_path / "catalog.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    writer.execute("DELETE FROM crmbackup_runs")
    assert catalog.runs() == [RUN]
    writer.execute("ROLLBACK")
    writer.close()

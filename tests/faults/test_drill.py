"""A drill must fail when what comes back is not what the manifest says, and say where."""

import base64
import json
import random
import shutil
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import apsw
import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import LocalError
from crmbackup.core.events import Event, Warned, discard
from crmbackup.engines.sqlite.target import SqliteTargetEngine
from crmbackup.operations.drill import DrillJob, DrillResult, run_drill
from crmbackup.policy.model import Assertion
from crmbackup.reports.signing import read_document, verify_report
from crmbackup.repository.manifest import ManifestHeader
from tests.support_repo import Site


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Site:
    site = Site.make(tmp_path_factory.mktemp("drill") / "site")
    site.fill(rows=50)
    with closing(apsw.Connection(str(site.database))) as db:
        db.execute("CREATE VIRTUAL TABLE search USING fts5(name); INSERT INTO search VALUES ('Ada')").fetchall()
    site.backup("full")
    site.fill(rows=5)
    site.backup("incremental")
    return site


@pytest.fixture
def site(made: Site, tmp_path: Path) -> Site:
    return made.copy(tmp_path / "site")


def drill(site: Site, **changes: Any) -> DrillResult:
    place = site.root / "drill"
    place.mkdir(exist_ok=True)
    job = DrillJob(
        policy=site.policy,
        open_repository=site.open,
        storage=site.spec,
        make_target=lambda engine: SqliteTargetEngine(),
        wanted="latest",
        window=None,
        directory=place,
        reports=site.root / "reports",
        assertions=(),
        foreign_keys="fail",
        rto=None,
        rpo=None,
        policy_sha256=None,
        operator="tester",
        trigger="test",
        jobs=1,
        host="crm-host",
        tool="crmbackup test",
        signer=lambda repository: (site.host_key.public, site.host_key.sign),
        verify_command="crmbackup report verify REPORT",
        clock=SystemClock(),
        emit=discard,
        rng=random.Random(1),
    )
    result = run_drill(replace(job, **changes))
    assert list(place.iterdir()) == [], "the drill left its restored copy behind"
    return result


def forge(site: Site, change: Callable[[dict[str, Any]], None]) -> ManifestHeader:
    """A newer snapshot, rightly signed by the host, whose body says something else than its chunks hold."""
    repository = site.open()
    header = site.headers()[-1]
    body = repository.body(header)
    change(body)
    later = replace(header, snapshot_id="f" * 16, captured=header.captured + timedelta(seconds=1))
    return repository.commit(later, body, SystemClock())


def test_a_good_snapshot_passes_with_nothing_of_the_local_state(site: Site) -> None:
    shutil.rmtree(site.root / "state")
    result = drill(site)
    report = result.report
    assert report.passed
    assert (report.verdicts.restore, report.verdicts.validation, report.verdicts.objectives) == (
        "passed",
        "passed",
        "not-set",
    )
    rows = {table.name: table.actual_rows for table in report.tables}
    assert rows["contacts"] == 55
    assert all(table.status == "match" and table.actual_checksum for table in report.tables)
    assert {check.name for check in report.checks} >= {
        "integrity_check",
        "foreign_key_check",
        "image_digest",
        "virtual table search",
    }
    assert {timing.phase for timing in report.timings} == {
        "keys",
        "locate",
        "prepare",
        "restore",
        "verify",
        "assertions",
    }
    assert report.target is not None
    assert report.target.destroyed


def test_the_report_is_signed_and_chained(site: Site) -> None:
    first, second = drill(site), drill(site)
    document = read_document(second.json_path.read_bytes())
    assert verify_report(document, {site.host_key.public}) == second.report
    assert second.report.drill.previous_report_sha256 == first.report_sha256
    assert "Drill passed" in second.html_path.read_text()


def _rows(body: dict[str, Any]) -> None:
    next(table for table in body["tables"] if table["name"] == "contacts")["rows"] += 1


def _checksum(body: dict[str, Any]) -> None:
    next(table for table in body["tables"] if table["name"] == "contacts")["checksum"] = "0" * 64


def _lost_table(body: dict[str, Any]) -> None:
    body["tables"] = [table for table in body["tables"] if table["name"] != "contacts"]


def _schema(body: dict[str, Any]) -> None:
    body["schema"]["digest"] = "0" * 64


def _setting(body: dict[str, Any]) -> None:
    body["schema"]["settings"]["user_version"] = 99


@pytest.mark.parametrize("change", [_rows, _checksum, _lost_table, _schema, _setting])
def test_every_kind_of_difference_fails_the_validation(site: Site, change: Callable[[dict[str, Any]], None]) -> None:
    forge(site, change)
    report = drill(site).report
    assert not report.passed
    assert (report.verdicts.restore, report.verdicts.validation) == ("passed", "failed")
    if change in (_rows, _checksum, _lost_table):
        assert [table.name for table in report.tables if table.status != "match"] == ["contacts"]


def _digest(body: dict[str, Any]) -> None:
    body["digest"] = "0" * 64


def _swapped_pages(body: dict[str, Any]) -> None:
    rows = bytearray(base64.b64decode(body["layout"]["extents"]))
    first, rest = rows[12:16], rows[28:32]
    rows[12:16], rows[28:32] = rest, first
    rows[8:12], rows[24:28] = rows[24:28], rows[8:12]
    body["layout"]["extents"] = base64.b64encode(rows).decode()


@pytest.mark.parametrize("change", [_digest, _swapped_pages])
def test_an_image_that_is_not_the_snapshots_is_not_restored(
    site: Site, change: Callable[[dict[str, Any]], None]
) -> None:
    forge(site, change)
    result = drill(site)
    assert result.error is not None
    assert result.report.verdicts.restore == "failed"
    assert result.report.verdicts.validation == "not-run"


def test_a_damaged_pack_fails_the_restore_and_is_reported(site: Site) -> None:
    pack = max(site.pack_paths(), key=lambda path: path.stat().st_size)
    data = bytearray(pack.read_bytes())
    data[len(data) // 2] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    result = drill(site)
    assert result.error is not None
    assert result.error.code == "object-damaged"
    report = result.report
    assert (report.verdicts.restore, report.verdicts.validation) == ("failed", "not-run")
    assert report.repository is not None
    assert report.repository.damaged
    assert "Drill failed" in result.html_path.read_text()


def test_a_database_whose_own_references_are_broken_is_told(site: Site) -> None:
    with closing(apsw.Connection(str(site.database))) as db:
        db.execute("CREATE TABLE child (id INTEGER PRIMARY KEY, contact REFERENCES contacts)").fetchall()
        db.execute("INSERT INTO child VALUES (1, 12345)").fetchall()
    site.backup("incremental")
    report = drill(site).report
    assert report.verdicts.validation == "failed"
    (check,) = [check for check in report.checks if not check.ok]
    assert check.name == "foreign_key_check"
    assert check.detail is not None
    assert "child row 1 has no parent in contacts" in check.detail
    accepted = drill(site, foreign_keys="report").report
    assert accepted.passed
    assert any("accepted by drill.foreign_keys" in (check.detail or "") for check in accepted.checks)


def test_assertions_are_asked_of_the_restored_database(site: Site) -> None:
    questions = (
        Assertion(name="rows", sql="SELECT count(*) FROM contacts", expect=55),
        Assertion(name="wrong", sql="SELECT count(*) FROM contacts", expect=54),
        Assertion(name="broken", sql="SELECT nothing", expect=1),
        Assertion(name="harmful", sql="DELETE FROM contacts", expect=None),
    )
    report = drill(site, assertions=questions).report
    assert [answer.ok for answer in report.assertions] == [True, False, False, False]
    assert report.verdicts.validation == "failed"
    assert drill(site, assertions=questions[:1]).report.passed


def test_objectives_are_judged_apart(site: Site) -> None:
    report = drill(site, rto=3600.0, rpo=0.000001).report
    assert report.passed
    assert report.verdicts.objectives == "missed"
    assert drill(site, rto=3600.0, rpo=3600.0).report.verdicts.objectives == "met"


def test_a_snapshot_dated_in_the_future_is_warned_of_and_is_not_the_latest(site: Site) -> None:
    repository, header = site.open(), site.headers()[-1]
    later = replace(header, snapshot_id="f" * 16, captured=header.captured + timedelta(days=400))
    repository.commit(later, repository.body(header), SystemClock())
    events: list[Event] = []
    report = drill(site, rpo=3600.0, emit=events.append).report
    assert report.passed
    assert report.source.snapshot_id == header.snapshot_id
    assert [event.code for event in events if isinstance(event, Warned)] == ["clock"]
    age = (report.started_at - header.captured).total_seconds()
    assert report.objectives.rpo_actual_s == pytest.approx(age)
    assert report.objectives.rpo_basis is not None
    assert "future" in report.objectives.rpo_basis
    seen = {drill(site, wanted="random", rng=random.Random(seed)).report.source.snapshot_id for seed in range(6)}
    assert "f" * 16 not in seen
    assert drill(site, wanted="f" * 16).report.source.snapshot_id == "f" * 16


def test_a_place_for_reports_that_cannot_be_used_is_told_before_anything_is_restored(site: Site) -> None:
    (site.root / "taken").write_text("a file")
    asked: list[str] = []
    with pytest.raises(LocalError, match="cannot write reports to"):
        drill(site, reports=site.root / "taken", make_target=asked.append)
    assert asked == []


def test_random_chooses_within_the_window(site: Site) -> None:
    ids = {drill(site, wanted="random", rng=random.Random(seed)).report.source.snapshot_id for seed in range(6)}
    assert ids == {header.snapshot_id for header in site.headers()}
    outside = drill(site, wanted="random", window=timedelta(0))
    assert outside.error is not None
    assert outside.error.code == "snapshot-not-found"
    assert json.loads(outside.json_path.read_bytes())["report"]["verdicts"]["restore"] == "failed"

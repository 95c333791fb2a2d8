"""Commands in this process: what they print for what there is. The end-to-end tests run the program itself."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crmbackup.catalog.catalog import Catalog
from crmbackup.catalog.records import Drill, Run
from crmbackup.cli import drill as drill_command
from crmbackup.cli.main import run
from crmbackup.core.errors import VerificationFailed
from crmbackup.operations.drill import DrillResult
from crmbackup.reports.drill import AssertionResult, CheckResult, DrillReport, TableResult
from tests.support_repo import Site
from tests.unit.report_examples import FAILING, PASSING

START = datetime(2026, 3, 1, 2, 30, tzinfo=UTC)
Crmbackup = Callable[..., tuple[int, str, str]]


@pytest.fixture
def crmbackup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Crmbackup:
    """Runs a command line in an empty directory; gives exit code, standard output and standard error."""
    for name in [name for name in os.environ if name.startswith(("CRMBACKUP_", "AWS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CRMBACKUP_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("CRMBACKUP_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)

    def crmbackup(*arguments: object) -> tuple[int, str, str]:
        code = run([str(each) for each in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return crmbackup


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A repository with one snapshot of the policy that Site has."""
    found = Site.make(tmp_path / "site")
    found.fill(rows=50)
    found.backup("full")
    (tmp_path / "identity.txt").write_text(found.identity.to_text())
    return found


# policy new


def test_policy_new_refuses_what_would_not_load(crmbackup: Crmbackup, tmp_path: Path) -> None:
    given = ("policy", "new", "--defaults", "--source", "crm.db", "--repository-url")
    for more, text in (
        ((".", "--name", "a b"), "--name a b"),
        (("ftp://x",), "--repository-url ftp://x"),
        (("/r", "--schedule", "weekly"), "must be one of nightly"),
        (("/r", "--region", "eu"), "--region does not fit"),
        (("/r", "--rto", "10"), "--rto 10"),
    ):
        code, _, err = crmbackup(*given, *more)
        assert code == 2
        assert text in err
    code, _, err = crmbackup("policy", "new", "--defaults", "--repository-url", "/r")
    assert (code, "--source is missing" in err) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_policy_new_writes_where_it_is_told_and_overwrites_nothing(crmbackup: Crmbackup, tmp_path: Path) -> None:
    given = (
        "policy",
        "new",
        "--defaults",
        "--source",
        "crm.db",
        "--repository-url",
        "s3://bucket/p",
        "--output",
        "x.yaml",
    )
    code, out, err = crmbackup(*given)
    assert (code, "x.yaml is written" in out) == (0, True)
    assert f"there is no file {tmp_path}/crm.db yet" in err
    assert crmbackup("policy", "validate", "./x.yaml")[0] == 0
    before = (tmp_path / "x.yaml").read_bytes()
    assert crmbackup(*given)[0] == 9
    assert (tmp_path / "x.yaml").read_bytes() == before
    (tmp_path / "file").write_text("")
    assert crmbackup(*given[:-1], "file/x.yaml")[0] == 9


def test_policy_validate_looks_at_all_that_are_named(crmbackup: Crmbackup, tmp_path: Path) -> None:
    crmbackup("policy", "new", "--defaults", "--source", "/crm.db", "--repository-url", "/r")
    (tmp_path / "policies" / "bad.yaml").write_text("version: 1\n")
    code, out, err = crmbackup("policy", "validate", "crm", "bad", "--json")
    assert code == 2
    assert [json.loads(line)["valid"] for line in out.splitlines()] == [True, False]
    assert "1 of 2 policies" in json.loads(err)["message"]


# Repositories by address


def test_a_repository_without_a_policy(crmbackup: Crmbackup, site: Site) -> None:
    (header,) = site.headers()
    where = ("--repository", site.repo)
    key = ("--identity-file", "identity.txt")
    code, out, _ = crmbackup("snapshots", *where)
    assert (code, header.snapshot_id in out) == (0, True)
    assert crmbackup("snapshots", *where, "--of", "nobody") == (0, "no snapshots yet\n", "")
    code, out, _ = crmbackup("show", header.snapshot_id[:5].upper(), *where, *key)
    assert (code, "contacts" in out) == (0, True)
    assert crmbackup("show", *where, *key)[1] == out
    assert crmbackup("show", "latest", "latest", *where)[0] == 2
    assert crmbackup("show")[0] == 2
    assert crmbackup("show", "a", "b", "c")[0] == 2
    code, out, _ = crmbackup("restore", *where, *key, "--to", "x.db", "--plan", "--at", "2999-01-01")
    assert (code, f"to      {Path.cwd() / 'x.db'}" in out) == (0, True)
    assert crmbackup("restore", *where, "--to", "x.db", "--at", "2999-01-01", "--snapshot", "ab")[0] == 2
    code, _, err = crmbackup("restore", *where, "--to", "x.db")
    assert (code, "the repository keeps none" in err) == (6, True)
    code, out, _ = crmbackup("check", *where, "-v")
    assert (code, "1 snapshot and 1 pack checked without a key" in out) == (0, True)


def test_a_repository_with_nothing_in_it_and_one_that_is_none(crmbackup: Crmbackup, tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    (tmp_path / "identity.txt").write_text(site.identity.to_text())
    where = ("--repository", site.repo, "--identity-file", "identity.txt")
    code, _, err = crmbackup("restore", *where, "--to", "x.db")
    assert (code, "has no complete snapshot\n  hint: make one" in err) == (5, True)
    (tmp_path / "empty").mkdir()
    assert crmbackup("snapshots", "--repository", "./empty")[0] == 10
    assert crmbackup("snapshots", "--repository", "./nowhere")[0] == 4
    assert crmbackup("snapshots", "--repository", "s3:/typo")[0] == 4


def test_a_snapshot_that_cannot_be_trusted_is_left_out_and_said(crmbackup: Crmbackup, site: Site) -> None:
    (header,) = site.headers()
    path = site.object_path(header.key)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    code, out, err = crmbackup("snapshots", "--repository", site.repo)
    assert (code, out) == (0, "no snapshots yet\n")
    assert "crmbackup: warning: manifest" in err
    code, _, err = crmbackup("restore", "--repository", site.repo, "--identity-file", "identity.txt", "--to", "x")
    assert code == 5
    assert "crmbackup: warning: manifest" in err


# The catalog


def test_the_history_of_runs_and_drills(crmbackup: Crmbackup, tmp_path: Path) -> None:
    assert crmbackup("catalog", "runs") == (0, "no runs yet\n", "")
    assert crmbackup("catalog", "drills") == (0, "no drills yet\n", "")
    assert crmbackup("catalog", "runs", "--json") == (0, "", "")
    catalog = Catalog(f"sqlite:///{tmp_path}/state/catalog.db")
    end = START + timedelta(minutes=2)
    good = {"finished_at": end, "kind": "full", "snapshot_id": "ab" * 8, "bytes_added": 2048}
    for run_id, policy, outcome, more in (
        ("1", "crm", "done", good),
        ("2", "shop", "failed", {"finished_at": end, "error_code": "source-missing"}),
        ("3", "crm", "failed", {"error_code": "interrupted"}),
    ):
        catalog.record(Run(run_id, policy, "backup", START + timedelta(hours=int(run_id)), outcome, "h", **more))
    catalog.record(Drill("d", "crm", START, end, "passed", "not-run", "not-set"))
    catalog.close()

    code, out, _ = crmbackup("catalog", "runs")
    assert code == 0
    assert out.splitlines()[0].split() == ["Started", "(UTC)", "Policy", "Kind", "Took", "Added", "Result"]
    newest, second, oldest = out.splitlines()[2:]
    assert newest.endswith("failed: interrupted")
    assert second.endswith("failed: source-missing")
    assert oldest.endswith("2.0 KiB  " + "ab" * 8)
    assert len(crmbackup("catalog", "runs", "--limit", "1", "--json")[1].splitlines()) == 1
    assert "not run" in crmbackup("catalog", "drills")[1]
    assert json.loads(crmbackup("catalog", "drills", "--json")[1])["drill_id"] == "d"


# What a drill says


def result(report: DrillReport) -> DrillResult:
    return DrillResult(report, Path("/r/report.json"), Path("/r/report.html"), "00", None)


def test_a_drill_that_passed(capsys: pytest.CaptureFixture[str]) -> None:
    drill_command._text(result(PASSING))
    out = capsys.readouterr().out
    assert "PASSED" in out
    assert "FAILED" not in out
    assert "/r/report.html" in out


def test_a_drill_names_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    bad = TableResult("con\x1btacts", "table", "mismatch", 10, 9, "aa", "bb", "a row is missing")
    report = replace(
        PASSING,
        tables=(bad,),
        checks=(CheckResult("integrity_check", False, "x" * 1000), CheckResult("image_digest", True)),
        assertions=(
            AssertionResult("no orphans", "SELECT 1", "0", "1", ok=False),
            AssertionResult("broken", "SELECT", "0", None, ok=False, error="syntax error"),
        ),
    )
    drill_command._text(result(report))
    out = capsys.readouterr().out
    assert "con\\x1btacts  mismatch" in out
    assert "a row is missing" in out
    assert "FAILED  integrity_check: xxx" in out
    assert "the report has it all" in out
    assert "assertion no orphans: 1 instead of 0" in out
    assert "assertion broken: syntax error" in out
    error = drill_command._failed(result(report))
    assert isinstance(error, VerificationFailed)
    assert "not what the snapshot says" in error.what
    assert "integrity_check" in error.why


def test_a_drill_whose_tables_differ_by_example(capsys: pytest.CaptureFixture[str]) -> None:
    drill_command._text(result(FAILING))
    out = capsys.readouterr().out
    assert all(each.name in out for each in FAILING.tables if each.status != "match")


def test_a_drill_that_left_tables_out_shows_them_and_passes(capsys: pytest.CaptureFixture[str]) -> None:
    left = TableResult("cron.job", "extension configuration", "left-out", 3, None, "aa", None, "pg_cron acts by itself")
    report = replace(PASSING, tables=(*PASSING.tables, left))
    drill_command._text(result(report))
    out = capsys.readouterr().out
    assert "PASSED" in out
    assert "cron.job  left-out" in out
    assert "pg_cron acts by itself" in out
    data = drill_command._data(result(report))
    assert (data["mismatches"], data["left_out"]) == ([], ["cron.job"])
    failed = drill_command._failed(result(replace(FAILING, tables=(*FAILING.tables, left))))
    assert "cron.job" not in failed.why


def test_a_drill_tells_wrong_data_from_a_wrong_copy() -> None:
    orphans = CheckResult("foreign_key_check", False, "t row 1 has no parent in p")
    error = drill_command._failed(result(replace(PASSING, checks=(orphans,))))
    assert "is the snapshot, but is not right" in error.what
    assert "foreign_keys: report" in error.hint

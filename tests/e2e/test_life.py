"""A whole life on a local disk, as a sysadmin lives it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from crmbackup.core.canonical import canonical_json
from crmbackup.reports.signing import sign_report, verify_report
from crmbackup.repository.signing import HostKey
from tests.e2e.product import Host, content, quiet, value, workday, write_policy

pytestmark = pytest.mark.e2e


def test_from_nothing_to_a_proved_restore(host: Host, database: Path, tmp_path: Path) -> None:
    source, repository = database, tmp_path / "repository"
    host.run("policy", "new", "--defaults", "--source", source, "--repository-url", repository, "--rto", "1h")
    assert host.run("policy", "validate", "crm").out.endswith("crm.yaml is valid\n")

    sheet = host.run("init", "crm", "--no-passphrase", "--identity-out", "identity.txt").out
    identity = (host.cwd / "identity.txt").read_text().splitlines()[-1]
    assert "crmbackup recovery sheet" in sheet
    assert str(repository) in sheet
    assert identity not in sheet, "output that is no terminal does not get the identity"
    assert (host.cwd / "identity.txt").stat().st_mode & 0o777 == 0o600
    key = ("--identity-file", "identity.txt")

    quiet(host.run("backup", "crm"))
    first = content(source)
    workday(source)
    second = content(source)
    assert second != first
    quiet(host.run("backup", "crm"))

    full, incremental = host.snapshots("crm")
    assert (full["kind"], full["parent"]) == ("full", None)
    assert (incremental["kind"], incremental["parent"]) == ("incremental", full["snapshot_id"])
    assert incremental["added_size"] < full["added_size"] / 2

    shown = host.run("show", "crm", *key, "--json").one("snapshot")
    tables = {table["name"]: table["rows"] for table in shown["tables"] if table["kind"] == "table"}
    assert "contacts" in tables
    assert tables == {name: len(second[name]) for name in tables}

    plan = host.run("restore", "crm", *key, "--to", "out.db", "--plan").out
    assert incremental["snapshot_id"] in plan
    assert not (host.cwd / "out.db").exists()
    host.run("restore", "crm", *key, "--to", "out.db")
    assert content(host.cwd / "out.db") == second
    host.run("restore", "crm", *key, "--to", "older.db", "--snapshot", full["snapshot_id"][:6])
    assert content(host.cwd / "older.db") == first

    quiet(host.run("drill", "crm", *key))
    report = next((host.state / "reports").glob("*.json"))
    assert report.with_suffix(".html").read_text().startswith("<!DOCTYPE html>")
    assert "is genuine" in host.run("report", "verify", report, "crm").out
    quiet(host.run("check", "crm", "--read-data", *key))

    assert len(host.run("catalog", "runs", "crm", "--json").lines) == 2
    (host.state / "catalog.db").unlink()
    assert "2 snapshots and 1 drill" in host.run("catalog", "rebuild", "crm").out
    drill = host.run("catalog", "drills", "crm", "--json").one("drill")
    assert (drill["restore"], drill["validation"], drill["objectives"]) == ("passed", "passed", "met")


def test_a_restore_picks_the_moment_that_is_asked_for(ready: Host, database: Path) -> None:
    before = content(database)
    workday(database)
    ready.run("backup", "crm")
    first, second = ready.snapshots("crm")

    ready.run("restore", "crm", "--to", "first.db", "--at", first["captured"])
    ready.run("restore", "crm", "--to", "second.db", "--at", second["captured"])
    assert content(ready.cwd / "first.db") == before
    assert content(ready.cwd / "second.db") == content(database)


def test_one_repository_for_many_policies(ready: Host, database: Path, tmp_path: Path) -> None:
    workday(database)
    write_policy(ready.cwd / "policies" / "other.yaml", database, str(tmp_path / "repository"))
    ready.run("backup", "other")
    anywhere = ("--repository", tmp_path / "repository", "--identity-file", tmp_path / "identity.txt")

    assert [each["policy"] for each in ready.snapshots("crm")] == ["crm"]
    assert {each["policy"] for each in ready.snapshots("--repository", tmp_path / "repository")} == {"crm", "other"}
    unclear = ready.run("restore", *anywhere, "--to", "out.db", code=2)
    assert "crm, other" in unclear.err
    assert "--of" in unclear.err
    ready.run("restore", *anywhere, "--of", "other", "--to", "out.db")
    assert content(ready.cwd / "out.db") == content(database)


def test_a_second_host_joins_and_writes(ready: Host, tmp_path: Path) -> None:
    second = Host(tmp_path / "second", ready.cwd)
    second.home.mkdir()
    stranger = second.run("backup", "crm", code=6)
    assert "--join" in stranger.err
    second.run("init", "crm", "--join")
    second.run("backup", "crm")
    third, fourth = ready.snapshots("crm")
    assert third["signer"] != fourth["signer"]
    quiet(ready.run("backup", "crm"))


def test_losing_the_state_costs_one_full_and_is_said(ready: Host, database: Path) -> None:
    (next(ready.state.glob("*/crm/current"))).unlink()
    done = ready.run("backup", "crm", "--json")
    assert done.one("snapshot")["kind"] == "full"
    assert "remembers no snapshot" in done.one("warning")["text"]
    ready.run("restore", "crm", "--to", "out.db")
    assert content(ready.cwd / "out.db") == content(database)
    assert ready.run("backup", "crm", "--json").one("snapshot")["kind"] == "incremental"


def test_losing_the_host_key_has_a_way_out(ready: Host) -> None:
    (ready.config / "host.key").unlink()
    lost = ready.run("backup", "crm", code=6)
    assert "init POLICY --join" in lost.err
    ready.run("init", "crm", "--join")
    quiet(ready.run("backup", "crm"))

    (ready.config / "host.key").write_text("not a key")
    damaged = ready.run("init", "crm", "--join", code=6)
    assert f"{ready.config}/host.key" in damaged.err
    assert "remove that file" in damaged.err


def test_a_drill_that_finds_a_difference_fails_and_reports(ready: Host, database: Path) -> None:
    policy = ready.cwd / "policies" / "crm.yaml"
    policy.write_text(
        policy.read_text()
        + "drill:\n  assertions:\n"
        + "    - {name: many, sql: select count(*) from contacts, expect: {min: 1000000}}\n"
    )
    done = ready.run("drill", "crm", "--json", code=7)
    assert done.error["code"] == "verification-failed"
    result = done.one("drill")
    assert result["verdicts"] == {"restore": "passed", "validation": "failed", "objectives": "not-set"}
    report = json.loads(Path(result["report"]).read_text())["report"]
    (assertion,) = report["assertions"]
    assert not assertion["ok"]
    assert assertion["actual"] == str(value(database, "SELECT count(*) FROM contacts"))


def test_an_objective_that_is_missed_has_an_exit_code_of_its_own(ready: Host) -> None:
    policy = ready.cwd / "policies" / "crm.yaml"
    policy.write_text(policy.read_text() + "objectives: {rpo: 1s}\n")
    # The snapshot of `ready` is older than a second as soon as a second has gone by: the program itself takes part of it.
    while ready.run("restore", "crm", "--to", "x", "--plan", "--json").one("plan")["age_seconds"] <= 1:
        pass
    done = ready.run("drill", "crm", "--json", code=8)
    assert done.error["code"] == "objectives-missed"
    assert done.one("drill")["verdicts"]["validation"] == "passed"


def test_a_repository_json_that_is_gone_can_be_made_again(ready: Host, database: Path, tmp_path: Path) -> None:
    """A new repository in its place would make every snapshot useless."""
    second = Host(tmp_path / "second", ready.cwd)
    second.home.mkdir()
    second.run("init", "crm", "--join")
    second.run("backup", "crm")
    (tmp_path / "repository" / "repository.json").unlink()
    assert "this host knows one there" in ready.run("backup", "crm", "--json", code=10).error["hint"]
    new = ("init", "crm", "--no-passphrase", "--identity-out", tmp_path / "new.txt", "--json")
    for host in (ready, Host.make(tmp_path / "stranger")):
        host.cwd = ready.cwd
        assert "repository.json is gone" in host.run(*new, code=5).error["message"]
    # Whoever does not know the repository has only the storage's word for which one it is.
    stranger = Host(tmp_path / "third", ready.cwd)
    stranger.home.mkdir()
    stranger.run("init", "crm", "--join", code=10)

    assert ready.run("init", "crm", "--join", "--json").one("warning")["code"] == "repository-remade"
    (own,) = (line["snapshot_id"] for line in ready.snapshots("crm") if line["type"] == "snapshot")
    ready.run("restore", "crm", "--snapshot", own, "--to", "out.db")
    assert content(ready.cwd / "out.db") == content(database)
    ready.run("backup", "crm")
    second.run("backup", "crm", code=5)
    second.run("init", "crm", "--join")
    quiet(second.run("backup", "crm"))
    assert len(ready.snapshots("crm")) == 4


def test_a_report_proves_nothing_of_another_policy_or_repository(ready: Host, database: Path, tmp_path: Path) -> None:
    """One host signs what it drills anywhere, so that a signature alone could pass a toy off as the CRM."""
    policies = ready.cwd / "policies"
    identity = ["identity: {file: " + str(tmp_path / "identity.txt") + "}"]
    missed = "objectives: {rpo: 1s}"
    write_policy(policies / "crm.yaml", database, str(tmp_path / "repository"), inside=identity, more=missed)
    write_policy(policies / "shop.yaml", database, str(tmp_path / "repository"), inside=identity)
    write_policy(policies / "toy.yaml", database, str(tmp_path / "toys"))
    ready.run("init", "toy", "--no-passphrase", "--identity-out", tmp_path / "toy.txt")
    ready.run("backup", "shop")
    ready.run("backup", "toy")
    of = {
        "crm": ready.run("drill", "crm", "--json", code=8).one("drill"),
        "shop": ready.run("drill", "shop", "--json").one("drill"),
        "toy": ready.run("drill", "toy", "--identity-file", tmp_path / "toy.txt", "--json").one("drill"),
    }
    done = ready.run("report", "verify", of["crm"]["report"], "crm")
    assert "of crm, passed" in done.out
    assert "objectives missed" in done.out
    assert of["crm"]["snapshot_id"] in done.out
    assert done.err == ""
    assert "not of crm" in ready.run("report", "verify", of["shop"]["report"], "crm", "--json", code=2).error["message"]
    other = ready.run("report", "verify", of["toy"]["report"], "crm", "--json", code=5).error
    assert (other["code"], "another repository" in other["message"]) == ("untrusted-signature", True)
    # A report that was changed and signed again with the host's key is not the one that the drill noted.
    assert "recorded  in the repository" in done.out
    report = verify_report(json.loads(Path(of["crm"]["report"]).read_bytes()), None)
    key = HostKey.from_text((ready.config / "host.key").read_text())
    better = replace(report, verdicts=replace(report.verdicts, objectives="met"))
    forged = ready.cwd / "forged.json"
    forged.write_bytes(canonical_json(sign_report(better, key.public, key.sign)))
    assert "forged" in ready.run("report", "verify", forged, "crm", "--json", code=5).error["hint"]
    shutil.rmtree(tmp_path / "repository" / "drills" / "crm")
    assert "has no record" in ready.run("report", "verify", forged, "crm").out
    # An auditor's machine knows no repository: what lists the signers may be anybody's.
    auditor = Host.make(tmp_path / "auditor")
    done = auditor.run("report", "verify", of["shop"]["report"], "--repository", tmp_path / "repository")
    assert "of shop, passed" in done.out
    assert "does not know the repository" in done.err

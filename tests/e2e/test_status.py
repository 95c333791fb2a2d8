"""`crmbackup status` and `crmbackup doctor`: what they find out, and what they look like."""

from __future__ import annotations

import os
import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.product import FAR, Host, stopped_at_end, write_policy
from tests.e2e.test_terminal import ESCAPES, Terminal
from tests.servers import S3Server

pytestmark = pytest.mark.e2e
SCHEDULE = f'schedule: {{incremental: "0 0 1 {FAR} *", drill: "0 5 1 {FAR} *"}}\nobjectives: {{rpo: 2h}}'


def one(host: Host, *arguments: object, code: int = 0) -> dict[str, Any]:
    return host.run("status", *arguments, "--json", code=code).one("status")


def codes(status: dict[str, Any]) -> list[str]:
    return [concern["code"] for concern in status["concerns"]]


@pytest.fixture
def crm(ready: Host, database: Path, tmp_path: Path) -> Host:
    """`ready`, with a schedule that calls for nothing while a test runs."""
    inside = ["identity: {file: " + str(tmp_path / "identity.txt") + "}"]
    write_policy(
        ready.cwd / "policies" / "crm.yaml", database, str(tmp_path / "repository"), more=SCHEDULE, inside=inside
    )
    return ready


def test_status_is_judged_from_the_repository_and_needs_neither_key_nor_memory(crm: Host, tmp_path: Path) -> None:
    found = one(crm, "crm")
    assert (found["ok"], found["snapshots"], found["newest"]["kind"], found["drill"]) == (True, 1, "full", None)
    assert 0 <= found["age"] < 600
    assert found["next"]["key"] == "incremental"
    crm.run("backup", "crm")
    crm.run("drill", "crm")
    assert one(crm)["drill"]["verdict"] == "passed"
    shutil.rmtree(crm.state / "reports")
    assert len(one(crm)["sizes"]) == 2
    # A host that has never seen the repository, without identity: it cannot tell whose it is, but how it stands.
    (tmp_path / "identity.txt").rename(tmp_path / "away.txt")
    other = Host.make(tmp_path / "other")
    other.cwd.rmdir()
    other.cwd.symlink_to(crm.cwd)
    assert (one(other)["snapshots"], one(other)["drill"]["host"]) == (2, socket.gethostname())
    # What was taken is gone from the repository: what this host remembers does not count.
    shutil.rmtree(tmp_path / "repository" / "snapshots")
    assert codes(one(crm, code=14)) == ["no-snapshot"]
    crm.run("backup", "crm")
    assert codes(one(crm)) == []
    # A record that somebody made up is none, on whatever host.
    for record in (tmp_path / "repository" / "drills" / "crm").iterdir():
        record.write_bytes(record.read_bytes().replace(b'"host":"', b'"host":"x'))
    assert codes(one(crm, code=14)) == ["untrusted-signature"]
    assert one(crm, code=14)["drill"] is None


def test_what_is_wrong_hides_nothing_and_is_the_exit_code(crm: Host, database: Path, tmp_path: Path) -> None:
    policies = crm.cwd / "policies"
    write_policy(policies / "away.yaml", database, str(tmp_path / "unmounted"))
    inside = ["endpoint: http://127.0.0.1:9", "access_key_id: {env: HOME}", "secret_access_key: {env: HOME}"]
    write_policy(policies / "s3.yaml", database, "s3://bucket/p", inside=inside)
    (policies / "broken.yaml").write_text("version: 1\n")
    (crm.cwd / "loop").symlink_to("loop")
    done = crm.run("status", code=14)
    rows = {line.split()[0]: line.split()[1] for line in done.out.splitlines()[2:6]}
    assert rows == {"away": "LOOK", "broken": "LOOK", "crm": "ok", "s3": "LOOK"}
    assert f"away: there is no directory {tmp_path}/unmounted" in done.out
    assert "3 of 4 policies need attention: away, broken, s3" in done.err
    found = {line["policy"]: line for line in crm.run("status", "--json", code=14).lines}
    assert codes(found["broken"]) == ["policy-invalid"]
    assert codes(found["s3"]) == ["storage-unavailable"]
    assert found["away"]["reachable"] is False
    crm.run("status", "crm")
    assert crm.run("status", "nobody", "--json", code=2).error["code"] == "policy-not-found"


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_screens_fit_the_terminal(crm: Host, database: Path, tmp_path: Path, columns: int) -> None:
    write_policy(crm.cwd / "policies" / "a-shop-with-a-long-name.yaml", database, str(tmp_path / "unmounted"))
    environ = {"NO_COLOR": "1", "LANG": "C", "LC_ALL": "C"} if columns == 80 else {}
    for command, text in (("status", "ok"), ("doctor", "XX  storage"), ("schedule", "incremental")):
        arguments = (command, "show") if command == "schedule" else (command,)
        terminal = Terminal(crm, *arguments, columns=columns, env=environ)
        with stopped_at_end(terminal.process):
            assert terminal.end() == (0 if command == "schedule" else 14), terminal.seen
        plain = ESCAPES.sub("", terminal.seen)
        assert text in plain
        assert ("\x1b[31m" in terminal.seen) == (command != "schedule" and not environ)
        # Paths and the error at the end are not cut; whatever has spaces is folded.
        lines = [line for line in plain.split("crmbackup: attention")[0].splitlines() if len(line.split()) > 2]
        assert max(len(line) for line in lines if "/" not in line) <= columns


def doctor(host: Host, *arguments: object, code: int = 0) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Findings by policy and area."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in host.run("doctor", *arguments, "--json", code=code).lines:
        if line["type"] == "finding":
            found.setdefault((line["policy"] or "", line["area"]), []).append(line)
    return found


def levels(found: list[dict[str, Any]]) -> list[str]:
    return [each["level"] for each in found]


def test_doctor_finds_what_would_fail_and_says_what_mends_it(crm: Host, database: Path, tmp_path: Path) -> None:
    found = doctor(crm, "crm", code=14)
    assert levels(found["", "keys"]) == ["ok"]
    assert levels(found["crm", "schedule"]) == ["fail"]
    assert "crmbackup schedule install" in found["crm", "schedule"][0]["mend"]
    assert levels(found["crm", "keys"]) == ["ok", "ok"]
    assert levels(found["crm", "source"]) == levels(found["crm", "clock"]) == levels(found["crm", "space"]) == ["ok"]
    assert found["crm", "programs"][0]["text"].startswith("SQLite 3.")
    assert not list((tmp_path / "repository" / "probe").glob("doctor*")), "the trial is gone"

    (tmp_path / "identity.txt").rename(tmp_path / "away.txt")
    (crm.config / "host.key").chmod(0o644)
    database.rename(tmp_path / "moved.db")
    found = doctor(crm, "crm", code=14)
    assert found["", "keys"][0]["mend"] == f"chmod 600 {crm.config}/host.key"
    assert found["crm", "source"][0]["text"].startswith("source-missing: ")
    assert "secret-unavailable" in found["crm", "keys"][-1]["text"]
    os.truncate(tmp_path / "moved.db", 0)

    # Without drills no identity is asked for; without a schedule nothing has to be installed.
    (tmp_path / "moved.db").unlink()
    plain = write_policy(crm.cwd / "plain.yaml", tmp_path / "crm.db", str(tmp_path / "repository"))
    found = doctor(crm, plain, code=14)
    assert levels(found["plain", "keys"]) == ["ok"]
    assert levels(found["plain", "schedule"]) == ["note"]
    other = Host.make(tmp_path / "other")
    found = doctor(other, plain, code=14)
    assert levels(found["", "keys"]) == ["fail"]
    assert "--join" in found["plain", "keys"][0]["mend"]
    (crm.cwd / "broken.yaml").write_text("version: 1\n")
    assert levels(doctor(Host.make(tmp_path / "third"), code=14)["policies", "policy"]) == ["fail"]
    assert levels(doctor(crm, "./broken.yaml", code=14)["broken", "policy"]) == ["fail"]


def test_doctor_finds_a_damaged_manifest(crm: Host, tmp_path: Path) -> None:
    assert levels(doctor(crm, "crm", code=14)["crm", "storage"])[:1] == ["ok"]
    (manifest,) = (tmp_path / "repository" / "snapshots" / "crm").iterdir()
    manifest.chmod(0o600)
    manifest.write_bytes(manifest.read_bytes()[:-1])
    found = [each for each in doctor(crm, "crm", code=14)["crm", "storage"] if each["level"] == "fail"]
    assert [each["text"].partition(":")[0] for each in found] == ["object-damaged"]
    assert "crmbackup check crm" in found[0]["mend"]


def test_doctor_on_s3(host: Host, on_s3: Path, seaweed: S3Server) -> None:
    host.run("backup", on_s3)
    found = doctor(host, on_s3)
    texts = [each["text"] for each in found["crm", "storage"]]
    assert re.match(r"s3://.+ is reached, 1 snapshot$", texts[0])
    assert "this host may delete objects, and need not" in texts
    assert any(text.startswith("object lock: ") for text in texts)
    assert levels(found["crm", "clock"]) == ["ok"]
    assert host.run("doctor", on_s3).out.count("!!") == 1

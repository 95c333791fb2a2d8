"""`crmbackup run --due` as cron calls it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.e2e.gate import Gate
from tests.e2e.product import FAR, PROGRAM, Host, quiet, stopped_at_end, write_policy

pytestmark = pytest.mark.e2e
#: Times that do not come while a test runs: what is due is due because the test says so.
SCHEDULE = (
    f'schedule: {{timezone: Europe/Berlin, full: "30 2 1 {FAR} *", incremental: "30 3 1 {FAR} *", '
    f'drill: "0 5 1 {FAR} *", check: "0 6 1 {FAR} *"}}'
)


def scheduled(host: Host, database: Path, tmp_path: Path, name: str = "crm", more: str = SCHEDULE) -> Path:
    """The policy of `ready`, or one more on its repository, with a schedule that this host has seen."""
    identity = ["identity: {file: " + str(tmp_path / "identity.txt") + "}"]
    path = host.cwd / "policies" / f"{name}.yaml"
    write_policy(path, database, str(tmp_path / "repository"), more=more, inside=identity)
    quiet(host.run("run", "--due", name))
    return path


def records(host: Host, name: str = "crm") -> Path:
    (found,) = (host.state / "schedule").glob(f"{name}-*")
    return found


def record(host: Host, action: str, name: str = "crm") -> dict:
    return json.loads((records(host, name) / f"{action}.json").read_bytes())


def change(host: Host, action: str, name: str = "crm", **fields: object) -> None:
    path = records(host, name) / f"{action}.json"
    path.write_text(json.dumps(record(host, action, name) | fields))


def moment(ago: timedelta) -> str:
    return (datetime.now(UTC) - ago).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def missed(host: Host, *actions: str, name: str = "crm") -> None:
    """As if the machine had been off for two years."""
    for action in actions:
        served = dict.fromkeys(record(host, action, name)["served"], moment(timedelta(days=800)))
        change(host, action, name, served=served)


def test_what_was_missed_is_made_up_for_once_and_in_silence(ready: Host, database: Path, tmp_path: Path) -> None:
    scheduled(ready, database, tmp_path)
    assert len(ready.snapshots("crm")) == 1
    missed(ready, "backup", "check", "drill")
    quiet(ready.run("run", "--due"))
    assert [each["kind"] for each in ready.snapshots("crm")] == ["full", "full"]
    (report,) = (ready.state / "reports").glob("*.json")
    assert json.loads(report.read_bytes())["report"]["drill"]["trigger"] == "schedule"
    for action in ("backup", "check", "drill"):
        assert record(ready, action)["exit_code"] == 0
    quiet(ready.run("run", "--due"))
    assert len(ready.snapshots("crm")) == 2
    done = ready.run("run", "--due", "--json")
    assert done.one("idle")["policy"] == "crm"
    assert re.match(r"Nothing is due; next is crm: \w+ at ", ready.run("run", "--due", "-v").out)


def test_json_says_what_ran_and_for_whom(ready: Host, database: Path, tmp_path: Path) -> None:
    scheduled(ready, database, tmp_path)
    missed(ready, "backup", "drill")
    done = ready.run("run", "--due", "--json")
    assert {(line["type"], line.get("scheduled")) for line in done.lines} >= {
        ("snapshot", "crm: backup"),
        ("drill", "crm: drill"),
    }
    missed(ready, "backup")
    out = ready.run("run", "--due", "-v").out
    assert out.startswith("crm: backup\nFull snapshot ")


def test_a_failing_policy_stops_no_other_and_its_exit_code_stays_until_it_is_mended(
    ready: Host, database: Path, tmp_path: Path
) -> None:
    scheduled(ready, database, tmp_path)
    gone = tmp_path / "gone.db"
    gone.write_bytes(database.read_bytes())
    scheduled(ready, gone, tmp_path, "bad")
    missed(ready, "backup", name="bad")
    missed(ready, "backup", "check")
    gone.rename(tmp_path / "away.db")
    done = ready.run("run", "--due", code=3)
    assert done.err.startswith(f"crmbackup: bad: backup: source-missing: the database {gone} does not exist\n  hint: ")
    assert len(ready.snapshots("crm")) == 2
    # It waits, in silence, and does not seem well.
    quiet(ready.run("run", "--due", code=3))
    waiting = ready.run("run", "--due", "--json", code=3)
    assert "bad: backup: is tried again at" in waiting.one("notice")["text"]
    (tmp_path / "away.db").rename(gone)
    change(ready, "backup", "bad", ended=moment(timedelta(minutes=6)))
    quiet(ready.run("run", "--due"))
    assert record(ready, "backup", "bad")["failures"] == 0
    assert len(ready.snapshots("bad")) == 1


def test_policies_that_cannot_be_used_are_told_and_keep_nobody_back(
    ready: Host, database: Path, tmp_path: Path
) -> None:
    scheduled(ready, database, tmp_path)
    missed(ready, "backup")
    (ready.cwd / "policies" / "broken.yaml").write_text("version: 1\n")
    done = ready.run("run", "--due", code=2)
    assert "crmbackup: broken: policy: policy-invalid: " in done.err
    assert len(ready.snapshots("crm")) == 2
    quiet(ready.run("run", "--due", code=2))  # not a mail each quarter of an hour
    missed(ready, "backup")
    done = ready.run("run", "--due", "--json", "nowhere", "crm", code=2)
    assert done.one("failed")["code"] == "policy-not-found"
    assert len(ready.snapshots("crm")) == 3
    (ready.cwd / "policies" / "broken.yaml").unlink()
    quiet(ready.run("run", "--due"))


def test_names_of_files_that_are_not_utf_8_keep_nobody_back(ready: Host, database: Path, tmp_path: Path) -> None:
    crm = scheduled(ready, database, tmp_path)
    odd = ready.cwd / "policies" / os.fsdecode(b"a-caf\xe9.yaml")
    odd.write_text(crm.read_text().replace("name: crm", "name: cafe"))
    missed(ready, "backup")
    quiet(ready.run("run", "--due"))
    assert len(ready.snapshots("crm")) == 2
    quiet(ready.run("backup", odd))
    target = os.fsdecode(b"caf\xe9.db")
    ready.run("restore", "crm", "--to", target)
    assert (ready.cwd / target).exists()
    assert "is whole" in ready.run("audit", "verify").out


def test_a_copy_of_a_policy_that_was_not_renamed_is_told_everywhere(
    ready: Host, database: Path, tmp_path: Path
) -> None:
    """Both would be one policy to the schedule: one database would be backed up, and all be said to be well."""
    crm = scheduled(ready, database, tmp_path)
    other = Path(shutil.copy(database, tmp_path / "shop.db"))
    shop = ready.cwd / "policies" / "a-shop.yaml"
    shop.write_text(crm.read_text().replace(str(database), str(other)))
    missed(ready, "backup")
    done = ready.run("run", "--due", code=2)
    assert f"a-shop: policy: policy-invalid: the policy {shop} has the name crm, as {crm} has" in done.err
    assert len(ready.snapshots("crm")) == 2
    assert "a-shop" in ready.run("status", code=14).err
    assert "policy-invalid" in ready.run("doctor", code=14).out
    assert "UNKNOWN - a-shop the policy" in ready.run("monitor", code=3).out
    for command in (("backup", "a-shop"), ("forget", "a-shop", "--plan"), ("drill", shop)):
        assert ready.run(*command, "--json", code=2).error["code"] == "policy-invalid"
    assert "a-shop.yaml:2: name: is taken" in ready.run("policy", "validate", "a-shop", code=2).out
    assert len(ready.snapshots("crm")) == 2
    # The same name elsewhere is another policy; so is one of its own.
    shop.write_text(shop.read_text().replace("name: crm", "name: a-shop"))
    ready.run("backup", "a-shop")
    ready.run("status", "a-shop")


def test_nothing_to_do_at_all_is_an_error(host: Host, database: Path) -> None:
    assert host.run("run", "--due", "--json", code=2).error["code"] == "policy-not-found"
    (host.cwd / "policies").mkdir()
    write_policy(host.cwd / "policies" / "crm.yaml", database, "/srv/nowhere")
    assert "no policy here has a schedule" in host.run("run", "--due", code=2).err
    assert "Say --due" in host.run("run", code=2).err


def test_what_this_version_cannot_do_is_not_passed_over(ready: Host, database: Path, tmp_path: Path) -> None:
    from crmbackup.cli.run import ACTIONS
    from crmbackup.policy.due import ACTIONS as KEYS

    for action in KEYS.keys() - ACTIONS.keys():
        scheduled(ready, database, tmp_path, more=f'schedule: {{{action}: "0 0 1 {FAR} *"}}')
        missed(ready, action)
        done = ready.run("run", "--due", code=2)
        assert f"schedule.{action} is due, and this version of crmbackup cannot do it" in done.err


def test_crons_environment_is_enough(ready: Host, database: Path, tmp_path: Path) -> None:
    """Without HOME, LANG and all: only what cron sets, and where this test keeps its files."""
    scheduled(ready, database, tmp_path)
    missed(ready, "backup", "check", "drill")
    environ = {"CRMBACKUP_CONFIG_DIR": str(ready.config), "CRMBACKUP_STATE_DIR": str(ready.state), "SHELL": "/bin/sh"}
    done = subprocess.run([str(PROGRAM), "run", "--due"], cwd=ready.cwd, env=environ, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len(ready.snapshots("crm")) == 2


def test_a_clock_that_was_set_back_makes_one_run(ready: Host, database: Path, tmp_path: Path) -> None:
    scheduled(ready, database, tmp_path)
    future = moment(timedelta(days=-1))
    change(ready, "backup", served={"full": future, "incremental": future}, started=future, ended=future)
    quiet(ready.run("run", "--due"))
    quiet(ready.run("run", "--due"))
    assert len(ready.snapshots("crm")) == 2


def test_two_hosts_with_one_policy_each_keep_to_the_schedule(ready: Host, database: Path, tmp_path: Path) -> None:
    scheduled(ready, database, tmp_path)
    other = Host.make(tmp_path / "other")
    other.cwd.rmdir()
    other.cwd.symlink_to(ready.cwd)
    other.run("init", "crm", "--join", "--identity-file", tmp_path / "identity.txt")
    quiet(other.run("run", "--due"))
    for each in (ready, other):
        missed(each, "backup")
    quiet(ready.run("run", "--due"))
    quiet(other.run("run", "--due"))
    assert [each["kind"] for each in ready.snapshots("crm")] == ["full"] * 3


def test_a_state_directory_that_cannot_be_written_runs_nothing_and_says_so(
    ready: Host, database: Path, tmp_path: Path
) -> None:
    scheduled(ready, database, tmp_path)
    missed(ready, "backup")
    prefix = ["unshare", "--user", "--map-user=4711"] if os.geteuid() == 0 else []
    for path in (records(ready), ready.state / "schedule"):
        mode = path.stat().st_mode
        for file in records(ready).iterdir():
            file.chmod(0o444)
        path.chmod(0o555)
        if path != records(ready):
            records(ready).chmod(0o555)
        done = ready.run("run", "--due", "--json", prefix=prefix, code=9)
        assert done.one("failed")["code"] == "local-denied"
        path.chmod(mode)
        records(ready).chmod(0o700)
    for file in records(ready).iterdir():
        file.chmod(0o600)
    assert len(ready.snapshots("crm")) == 1
    quiet(ready.run("run", "--due"))
    assert len(ready.snapshots("crm")) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_passed_on_and_the_run_is_repeated(host: Host, on_s3: Path, gate: Gate, number: int) -> None:
    with on_s3.open("a") as stream:
        stream.write(SCHEDULE + "\n")
    quiet(host.run("run", "--due", on_s3))
    missed(host, "backup")
    gate.hold("PUT /")
    process = host.start("run", "--due", on_s3)
    with stopped_at_end(process):
        assert gate.held.wait(60)
        process.send_signal(number)
        gate.open()
        done = host.ended(process)
    assert done.code == 130
    assert "crmbackup: crm: backup: interrupted: stopped by" in done.err
    assert host.snapshots(on_s3) == []
    assert record(host, "backup")["failures"] == 1
    change(host, "backup", ended=moment(timedelta(minutes=6)))
    quiet(host.run("run", "--due", on_s3))
    assert len(host.snapshots(on_s3)) == 1


def test_the_shell_completes_commands_and_names_of_policies(ready: Host) -> None:
    def offered(*words: str) -> list[str]:
        line = " ".join(words)
        env = {"_CRMBACKUP_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return ready.run(env=env).out.split()

    assert "plain,schedule" in offered("crmbackup", "sch")
    for command in ("backup", "status", "drill", "check", "run"):
        assert offered("crmbackup", command, "c") == ["plain,crm"]
    assert offered("crmbackup", "backup", "./c") == ["file,./c"]
    assert "complete" in ready.run(env={"_CRMBACKUP_COMPLETE": "bash_source"}).out

"""Runs that are stopped in the middle, or that meet each other: nothing half stays, and the next run works."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.e2e.gate import Gate
from tests.e2e.product import SECONDS, Host, content, quiet, stopped_at_end

pytestmark = pytest.mark.e2e

PACKS = "/backups/packs/"


def stop(
    host: Host, gate: Gate, number: signal.Signals, *arguments: object, at: str = PACKS, workers: bool = True
) -> tuple[int, str]:
    """Begin a command, stop it at a request, and give its exit code and standard error. workers: that are at work then."""
    gate.hold(at)
    with stopped_at_end(host.start(*arguments)) as process:
        assert gate.held.wait(SECONDS)
        children = psutil.Process(process.pid).children(recursive=True)
        assert bool(children) == workers
        process.send_signal(number)
        done = host.ended(process)
        _, alive = psutil.wait_procs(children, timeout=SECONDS)
        assert not alive
    gate.open()
    return done.code, done.err


def test_a_stopped_backup_commits_nothing_and_the_next_one_goes_on(
    host: Host, on_s3: Path, gate: Gate, database: Path
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        code, err = stop(host, gate, number, "backup", on_s3)
        assert code == 130
        assert "crmbackup: interrupted: stopped by" in err
        assert "Traceback" not in err
        run = host.run("catalog", "runs", on_s3, "--limit", "1", "--json").one("run")
        assert (run["outcome"], run["error_code"]) == ("failed", "interrupted")
    # Nothing cleans up after this one: the lock and the workers must go by themselves.
    code, _ = stop(host, gate, signal.SIGKILL, "backup", on_s3)
    assert code == -signal.SIGKILL
    assert host.snapshots(on_s3) == []
    quiet(host.run("backup", on_s3))
    host.run("restore", on_s3, "--to", "out.db")
    assert content(host.cwd / "out.db") == content(database)


def test_a_stopped_restore_leaves_no_file(host: Host, on_s3: Path, gate: Gate) -> None:
    host.run("backup", on_s3)
    (host.cwd / "old.db").write_text("precious")
    before = sorted(host.cwd.iterdir())
    for number in (signal.SIGINT, signal.SIGTERM):
        for target in ("new.db", "old.db"):
            code, _ = stop(host, gate, number, "restore", on_s3, "--to", target, "--overwrite")
            assert code == 130
            assert sorted(host.cwd.iterdir()) == before
    assert (host.cwd / "old.db").read_text() == "precious"


def test_a_stopped_drill_removes_what_it_restored_and_is_no_success(
    host: Host, on_s3: Path, gate: Gate, tmp_path: Path
) -> None:
    host.run("backup", on_s3)
    place = tmp_path / "drills"
    place.mkdir()
    on_s3.write_text(on_s3.read_text() + f"drill: {{directory: {place}}}\n")
    for number in (signal.SIGINT, signal.SIGHUP):
        code, _ = stop(host, gate, number, "drill", on_s3)
        assert code == 130
        assert list(place.iterdir()) == []
    drills = host.run("catalog", "drills", on_s3, "--json").lines
    assert {drill["validation"] for drill in drills} == {"not-run"}
    quiet(host.run("drill", on_s3))


def test_ctrl_c_in_any_other_phase_ends_a_command_and_the_next_one_works(
    host: Host, on_s3: Path, gate: Gate, database: Path
) -> None:
    """Before anything is read, in the commit, while manifests or packs are read, and before anything is deleted."""
    manifests = "/backups/snapshots/"
    for at, workers, command in (
        ("condemned", False, ("backup", on_s3)),
        (manifests, False, ("backup", on_s3)),
        (manifests, False, ("check", on_s3)),
        (PACKS, True, ("check", on_s3, "--read-data")),
        (manifests, False, ("forget", on_s3, "--yes")),
        (manifests, False, ("prune", on_s3, "--yes")),
    ):
        code, err = stop(host, gate, signal.SIGINT, *command, at=at, workers=workers)
        assert code == 130, (command, at, err)
        assert "crmbackup: interrupted: stopped by" in err
        assert "Traceback" not in err
        if command[0] == "backup":
            host.run(*command)
    host.run("restore", on_s3, "--to", "out.db")
    assert content(host.cwd / "out.db") == content(database)


def test_two_runs_of_one_policy_do_not_overlap(host: Host, on_s3: Path, gate: Gate) -> None:
    gate.hold(PACKS)
    with stopped_at_end(host.start("backup", on_s3)) as first:
        assert gate.held.wait(SECONDS)
        second = host.run("backup", on_s3, "--json", code=11)
        assert second.error["code"] == "locked"
        assert str(first.pid) in second.error["message"]
        gate.open()
        assert host.ended(first).code == 0
    assert len(host.snapshots(on_s3)) == 1
    quiet(host.run("backup", on_s3))


def test_a_reader_of_the_output_that_goes_away_ends_the_run_quietly(host: Host, on_s3: Path, gate: Gate) -> None:
    gate.hold(PACKS)
    with stopped_at_end(host.start("backup", on_s3, "--json")) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        assert gate.held.wait(SECONDS)
        process.stdout.close()
        gate.open()
        assert process.wait(SECONDS) == 141
        assert process.stderr.read() == ""
    quiet(host.run("backup", on_s3))
    assert len(host.snapshots(on_s3)) >= 1

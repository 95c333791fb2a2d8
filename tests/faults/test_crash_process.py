"""The installed program, killed, stopped and started twice: what a user's cron job lives through."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import yaml

from crmbackup.core.errors import Locked
from tests.support_repo import Site, wait_until
from tests.support_traps import Hold, Trap, session, start

PACKS = 4
PROGRAM = [sys.executable, "-c", "from crmbackup.cli.main import main; main()"]
# After each pack a run has to pause for longer than any test takes to notice the pack: killing hits a known moment.
SLOW = {"upload_rate": "15kB"}


@dataclass
class Host:
    """A policy, a repository with one small full snapshot, and a database that has grown since."""

    root: Path
    before: bytes = b""
    environ: dict[str, str] = field(default_factory=dict)

    @property
    def site(self) -> Site:
        """Only for its database."""
        return Site(self.root, b"", "", None)  # type: ignore[arg-type]

    def policy(self, **limits: object) -> Path:
        document = {
            "version": 1,
            "name": "crm",
            "source": {"type": "sqlite", "path": str(self.site.database)},
            "repository": {
                "url": str(self.root / "repo"),
                "identity": {"file": str(self.root / "id")},
                "retries": 1,
            },
            "limits": {"jobs": 1, **limits},
        }
        path = self.root / "policy.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*PROGRAM, *map(str, arguments), "--json"],
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, *arguments: object) -> tuple[int, list[dict[str, object]], dict[str, object]]:
        """Exit code, what was printed, and the error."""
        process = self.start(*arguments)
        out, err = process.communicate()
        errors = [json.loads(line) for line in err.splitlines() if b'"type": "error"' in line]
        return process.returncode, [json.loads(line) for line in out.splitlines()], errors[0] if errors else {}

    @contextmanager
    def slow_backup(self, packs: int) -> Iterator[subprocess.Popen[bytes]]:
        """A full that has written and noted so many packs and is not done."""
        with self.start("backup", self.policy(**SLOW), "--full") as process:
            try:
                wait_until(lambda: self.noted() >= packs or process.poll() is not None, "packs")
                assert process.poll() is None
                yield process
            finally:
                process.kill()

    def noted(self) -> int:
        return sum(path.read_bytes().count(b"\n") for path in (self.root / "state").glob("*/crm/pending.jsonl"))

    def packs(self) -> list[Path]:
        return self.site.pack_paths()

    def snapshots(self) -> list[Path]:
        return sorted((self.root / "repo" / "snapshots").glob("*/*"))

    def restored(self) -> bytes:
        """The latest snapshot."""
        target = self.root / "restored.db"
        target.unlink(missing_ok=True)
        code, _, error = self.run("restore", self.policy(), "--to", target)
        assert code == 0, error
        return target.read_bytes()

    def is_sound(self, image: bytes) -> None:
        """The next run succeeds, restores exactly, and the repository is whole."""
        code, _, error = self.run("backup", self.policy(), "--full")
        assert code == 0, error
        assert self.restored() == image
        code, _, error = self.run("check", self.policy(), "--read-data")
        assert code == 0, error


def make_host(root: Path) -> tuple[Path, bytes]:
    host = Host(root)
    host.environ = environ(root)
    before = host.site.fill(rows=20)
    code, _, error = host.run("init", host.policy(), "--identity-out", root / "id", "--no-passphrase")
    assert code == 0, error
    code, _, error = host.run("backup", host.policy(), "--full")
    assert code == 0, error
    return root, before


def environ(root: Path) -> dict[str, str]:
    inherited = {
        name: os.environ[name] for name in ("PATH", "PYTHONPATH", "COVERAGE_PROCESS_START") if name in os.environ
    }
    return {
        **inherited,
        "HOME": str(root),
        "CRMBACKUP_CONFIG_DIR": str(root / "config"),
        "CRMBACKUP_STATE_DIR": str(root / "state"),
    }


@pytest.fixture
def host(tmp_path: Path) -> tuple[Host, bytes]:
    """The pin is bound to the address, so every test makes its own."""
    root, before = make_host(tmp_path)
    host = Host(root, before, environ(root))
    return host, host.site.fill(mebibytes=24 * (PACKS - 1))


@pytest.mark.parametrize("packs", [1, 2])
def test_a_killed_run_leaves_no_process_and_no_lock_and_is_continued(host: tuple[Host, bytes], packs: int) -> None:
    machine, image = host
    with machine.slow_backup(packs) as process:
        workers = [pid for pid in session(process.pid) if pid != process.pid]
        assert workers
        process.kill()
        process.wait()
        wait_until(lambda: session(process.pid) == [], "the workers to end")
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers)
    assert len(machine.snapshots()) == 1
    assert machine.restored() == machine.before
    left = {path.name for path in machine.packs()}
    assert machine.run("check", machine.policy(), "--read-data")[0] == 0

    machine.is_sound(image)
    new = [path for path in machine.packs() if path.name not in left]
    assert len(new) < PACKS, "the packs of the killed run are used"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_stopped_run_says_so_and_leaves_no_process(host: tuple[Host, bytes], number: signal.Signals) -> None:
    machine, image = host
    with machine.slow_backup(1) as process:
        process.send_signal(number)
        _, err = process.communicate()
        assert (process.returncode, json.loads(err.splitlines()[-1])["code"]) == (130, "interrupted")
        assert session(process.pid) == []
    assert len(machine.snapshots()) == 1
    machine.is_sound(image)


def test_a_terminal_stops_the_whole_group(host: tuple[Host, bytes]) -> None:
    """Ctrl-C reaches the workers too; they leave it to the main process."""
    machine, image = host
    with machine.slow_backup(1) as process:
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130
        assert b"Traceback" not in err
        assert session(process.pid) == []
    machine.is_sound(image)


def test_a_worker_that_is_killed_fails_the_run_with_a_message(host: tuple[Host, bytes]) -> None:
    machine, image = host
    with machine.slow_backup(1) as process:
        (worker,) = [pid for pid in session(process.pid) if pid != process.pid]
        os.kill(worker, signal.SIGKILL)
        _, err = process.communicate()
        error = json.loads(err.splitlines()[-1])
        assert (process.returncode, error["code"]) == (9, "local")
        assert "worker" in error["message"]
    assert len(machine.snapshots()) == 1
    machine.is_sound(image)


def test_two_runs_of_one_policy_do_not_overlap(host: tuple[Host, bytes]) -> None:
    machine, image = host
    with machine.slow_backup(1) as process:
        os.kill(process.pid, signal.SIGSTOP)  # it holds its lock for as long as this test takes
        for _ in range(2):
            code, printed, error = machine.run("backup", machine.policy(), "--full")
            assert (code, error["code"]) == (11, "locked")
            assert [line["type"] for line in printed] == ["notice"]  # the run's id
            assert str(process.pid) in str(error["message"])
        # Reading is not kept out.
        assert machine.restored() == machine.before
        assert machine.run("check", machine.policy(), "--read-data")[0] == 0
        process.kill()
        process.wait()
        # At once: nothing has to time out first.
        code, _, error = machine.run("backup", machine.policy(), "--full")
        assert code == 0, error
    assert machine.restored() == image


# In process, where the moment can be chosen


def hold_run(site: Site, place: Path) -> None:
    site.backup("full", storage=Trap(site.spec, site.root / "count", 1, Hold(place)))


def test_the_lock_is_free_the_moment_its_holder_is_dead(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    image = site.fill(rows=10)
    process = start(hold_run, site, tmp_path)
    wait_until((tmp_path / "held").exists, "the first run")
    with pytest.raises(Locked):
        site.backup()
    site.for_policy("erp").fill(rows=3)
    site.for_policy("erp").backup("full")  # another policy is not kept out
    process.kill()
    process.join()
    taken = site.backup("full")
    assert site.restored(taken.header) == image


def test_a_run_that_is_let_go_commits_after_others_were_refused(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    image = site.fill(rows=10)
    process = start(hold_run, site, tmp_path)
    wait_until((tmp_path / "held").exists, "the first run")
    with pytest.raises(Locked):
        site.backup()
    (tmp_path / "go").touch()
    process.join()
    (header,) = site.headers()
    assert site.restored(header) == image
    assert site.backup().header.kind == "incremental"

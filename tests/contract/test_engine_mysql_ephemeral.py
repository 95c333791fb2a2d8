"""A private MariaDB server: it is as new as it must be, nobody else gets in, it reaches nothing, nothing of it is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pymysql
import pytest

from crmbackup.core.errors import ProgramMissing
from crmbackup.core.events import Notice
from crmbackup.engines.mysql.connection import Version, connect, execute, value
from crmbackup.engines.mysql.daemon import find_daemon
from crmbackup.engines.mysql.engine import MysqlSource, Settings
from crmbackup.engines.mysql.ephemeral import private_server
from crmbackup.engines.mysql.target import MysqlTargetEngine
from crmbackup.engines.private import remove_leftovers
from crmbackup.operations.workers import ProcessWorkers
from tests.chains import Chain
from tests.mariadb import running_mariadb
from tests.support_repo import wait_until

OWNER = """
import sys
from pathlib import Path
from crmbackup.engines.mysql.connection import Version
from crmbackup.engines.mysql.ephemeral import private_server
with private_server(Path(sys.argv[1]), Version("mariadb", (10, 6)), None) as server:
    print(server.directory, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that any user may pass through, unlike pytest's own: root's servers run as another user."""
    path = Path(tempfile.mkdtemp(prefix="crmbackup-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def daemon(directory: Path) -> psutil.Process:
    """The server with its files in there."""
    return next(
        process
        for process in psutil.process_iter(["cmdline"])
        if f"--defaults-file={directory / 'settings.cnf'}" in (process.info["cmdline"] or ())
        and "mariadbd" in process.info["cmdline"][0]
    )


def test_it_is_private_acts_on_nothing_and_is_gone_afterwards(place: Path) -> None:
    with private_server(place, Version("mariadb", (10, 6)), None) as server:
        process = daemon(server.directory)
        assert server.version.number >= (10, 6)
        assert process.net_connections("tcp") == []
        assert process.uids().real != 0
        assert server.offline == (os.geteuid() == 0)
        socket = Path(dict(server.server.options)["socket"])
        assert socket.parent.stat().st_mode & 0o777 == 0o700
        with connect(server.server) as connection:
            for name, wanted in (("event_scheduler", "OFF"), ("log_bin", 0), ("skip_networking", 1)):
                assert value(connection, f"SELECT @@{name}") == wanted
            engines = {name.lower() for (name,) in execute(connection, "SELECT engine FROM information_schema.engines")}
            assert not engines & {"federated", "connect", "spider", "s3"}
            with pytest.raises(pymysql.Error, match="open shared library"):
                execute(connection, "INSTALL SONAME 'ha_federatedx'")
            with pytest.raises(pymysql.Error, match="secure-file-priv"):
                execute(connection, f"SELECT 1 INTO OUTFILE '{tempfile.gettempdir()}/crmbackup-outside'")
        assert not server.gone()
    assert server.gone()
    assert not process.is_running()
    assert list(place.iterdir()) == []


def plugins() -> str:
    """The directory of the server's plugins, which private servers do not look into."""
    program = find_daemon(Version("mariadb", (10, 6))).path
    done = subprocess.run([program, "--no-defaults", "--verbose", "--help"], capture_output=True, text=True, check=True)
    return next(line.split()[1] for line in done.stdout.splitlines() if line.startswith("plugin-dir "))


def test_encrypted_tables_are_drilled_without_their_keys(place: Path) -> None:
    keys = place / "keys"
    keys.write_text(f"1;{'ab' * 32}\n2;{'cd' * 32}\n")
    settings = {
        "plugin_dir": plugins(),
        "plugin_load_add": "file_key_management",
        "file_key_management_filename": str(keys),
    }
    with running_mariadb(settings=settings) as source, ProcessWorkers(1) as workers:
        source.create_database("crm")
        with source.connect("crm") as connection:
            execute(connection, "CREATE TABLE t (id INT PRIMARY KEY) ENCRYPTED=YES ENCRYPTION_KEY_ID=2 COMMENT 'x'")
            execute(connection, "INSERT INTO t VALUES (1), (2)")
        chain = Chain(lambda: MysqlSource(source.server("crm"), Settings()), place / "chain", workers)
        taken = chain.take()
        engine = MysqlTargetEngine(None, None)
        with engine.isolated(place, taken.image.layout, taken.info.properties, chain.events.append) as drill:
            chain.restore(taken, drill.target)
            found = drill.target.verify(workers, taken.image.tables, taken.info.properties, chain.events.append)
    assert [check.name for check in found.checks if not check.ok] == []
    assert (list(found.tables), found.schema) == (list(taken.image.tables), taken.info.schema)
    assert any("not encrypted" in event.text for event in chain.events if isinstance(event, Notice))


def test_a_killed_owner_takes_the_server_along_and_the_files_go_next_time(place: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout
        directory = Path(owner.stdout.readline().strip())
        process = daemon(directory)
        remove_leftovers(place)  # its owner lives
        assert directory.exists()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    wait_until(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "the end of the server")
    assert directory.exists()

    def gone() -> bool:
        remove_leftovers(place)  # leaves it alone as long as any process of the killed owner has it
        return list(place.iterdir()) == []

    wait_until(gone, "the end of the files")


def test_no_server_of_that_version_or_product_is_told_before_anything_is_made(place: Path) -> None:
    for wanted, package in (
        (Version("mariadb", (99, 0)), "mariadb-server"),
        (Version("mysql", (99, 0)), "mysql-server"),
    ):
        with pytest.raises(ProgramMissing) as error, private_server(place, wanted, None):
            pass
        assert package in error.value.hint
    assert list(place.iterdir()) == []

"""A private server: it runs, nobody but its owner gets in, it reaches nothing, and nothing of it is left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import psycopg
import pytest

from crmbackup.core.errors import LocalDenied, LocalError, ProgramMissing
from crmbackup.engines.postgres.ephemeral import PrivateServer, private_server
from crmbackup.engines.private import PREFIX, remove_leftovers
from tests.postgres import running_server, server_programs
from tests.support_repo import wait_until

MAJORS = [12, 15, 18]
OWNER = """
import json, sys
from pathlib import Path
from crmbackup.engines.postgres.ephemeral import private_server
with private_server(Path(sys.argv[1]), 18, None) as server:
    print(json.dumps([str(server.directory), dict(server.server.keywords)["host"]]), flush=True)
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
        path.chmod(0o755)
        shutil.rmtree(path)


def connect(server: PrivateServer) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(**dict(server.server.keywords), autocommit=True)  # type: ignore[arg-type]


def host(server: PrivateServer) -> Path:
    return Path(dict(server.server.keywords)["host"])


def postmaster(directory: Path) -> psutil.Process:
    return psutil.Process(int((directory / "data" / "postmaster.pid").read_text().split()[0]))


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; an orphan that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def shell(connection: psycopg.Connection[tuple[object, ...]], command: str) -> list[str]:
    """What a command prints that a restored database could make the server run."""
    connection.execute("CREATE TEMP TABLE printed (line text)")
    connection.execute(f"COPY printed FROM PROGRAM '{command}' (DELIMITER E'\\x01')".encode())
    lines = [str(row[0]) for row in connection.execute("SELECT line FROM printed").fetchall()]
    connection.execute("DROP TABLE printed")
    return lines


@pytest.mark.parametrize("major", MAJORS, ids="pg{}".format)
def test_it_is_of_that_version_private_and_gone_afterwards(place: Path, major: int) -> None:
    with private_server(place, major, server_programs(major)) as server:
        with connect(server) as connection:
            assert connection.info.server_version // 10000 == server.major == major
            settings = ("listen_addresses", "shared_preload_libraries", "fsync", "data_checksums", "server_encoding")
            shown = [connection.execute(f"SHOW {name}".encode()).fetchone() for name in settings]
            assert shown == [("",), ("",), ("on",), ("on",), ("UTF8",)]
        process = postmaster(server.directory)
        family = [process, *process.children(recursive=True)]
        assert process.net_connections("tcp") == []
        assert os.getsid(process.pid) != os.getsid(0)  # a Ctrl-C at our terminal does not reach it
        assert host(server).stat().st_mode & 0o777 == 0o700
        assert (server.directory / "data").stat().st_mode & 0o777 == 0o700
        for each in family:
            with suppress(psutil.NoSuchProcess):  # that of a session that has ended
                assert each.uids().real != 0
        assert server.directory.parent == place
        assert not server.gone()
    assert server.gone()
    assert list(place.iterdir()) == []
    assert not host(server).exists()
    assert not any(map(alive, family))


def test_after_an_exception_nothing_is_left(place: Path) -> None:
    seen: list[tuple[PrivateServer, psutil.Process]] = []

    def use() -> None:
        with private_server(place, 18, None) as server:
            seen.append((server, postmaster(server.directory)))
            with connect(server) as connection:  # a session that is open must not hold it up
                connection.execute("CREATE TABLE contacts AS SELECT generate_series(1, 1000)")
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()
    server, process = seen[0]
    assert server.gone()
    assert not alive(process)
    assert list(place.iterdir()) == []


def test_a_killed_owner_takes_the_server_along_and_the_next_start_removes_the_files(place: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with owner:
        assert owner.stdout
        directory, socket = map(Path, json.loads(owner.stdout.readline()))
        process = postmaster(directory)
        family = [process, *process.children()]
        remove_leftovers(place)  # its owner lives
        assert (directory / "data" / "postmaster.pid").exists()
        process.suspend()
        owner.send_signal(signal.SIGKILL)
        owner.wait()
        remove_leftovers(place)  # its owner is gone, but it is still there itself
        assert (directory / "data" / "postmaster.pid").exists()
        process.resume()
        wait_until(lambda: not any(map(alive, family)), "the end of the server")
    assert directory.exists()
    with private_server(place, 18, None) as server:
        assert list(place.iterdir()) == [server.directory]
    assert not socket.exists()


def test_directories_of_that_name_that_are_not_ours_to_remove_stay(place: Path) -> None:
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "data").write_text("precious")
    (place / f"{PREFIX}link").symlink_to(elsewhere)
    remove_leftovers(place)
    assert (elsewhere / "data").read_text() == "precious"
    assert (place / f"{PREFIX}link").is_symlink()


@pytest.mark.parametrize("name", ["d" * 120, "a,b", 'it\'s a "place" \\ ü'])
def test_any_directory_will_do(place: Path, name: str) -> None:
    directory = place / name
    directory.mkdir()
    with private_server(directory, 18, None) as server:
        assert server.directory.parent == directory
        with connect(server) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    assert server.gone()
    assert list(directory.iterdir()) == []


def test_settings_of_the_caller_win(place: Path) -> None:
    settings = {"max_connections": "23", "cluster_name": "it's \\ mine"}
    with private_server(place, 18, None, settings=settings) as server, connect(server) as connection:
        for name, value in settings.items():
            assert connection.execute(f"SHOW {name}".encode()).fetchone() == (value,)


def test_a_start_that_fails_tells_why_and_leaves_nothing(place: Path) -> None:
    with (
        pytest.raises(LocalError, match=r"does not start.*no_such_setting"),
        private_server(place, 18, None, settings={"no_such_setting": "1"}),
    ):
        pass
    assert list(place.iterdir()) == []


def test_a_version_that_is_not_installed_is_named(place: Path) -> None:
    with pytest.raises(ProgramMissing, match="initdb of PostgreSQL 99"), private_server(place, 99, None):
        pass


def test_a_directory_that_cannot_be_used_is_refused(place: Path) -> None:
    with pytest.raises(LocalError, match="No such file"), private_server(place / "absent", 18, None):
        pass
    place.chmod(0o600)
    with pytest.raises(LocalDenied), private_server(place, 18, None):
        pass
    place.chmod(0o755)
    assert list(place.iterdir()) == []


def test_an_environment_that_leads_elsewhere_is_refused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOSTADDR", "192.0.2.1")
    with pytest.raises(LocalError, match=r"192\.0\.2\.1.*PGHOSTADDR"), private_server(place, 18, None):
        pass
    assert list(place.iterdir()) == []


def test_what_a_restored_database_runs_sees_no_secret_and_no_other_server(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_PASSWORD", "hunter2")
    with running_server(15) as other, private_server(place, 18, None) as server, connect(server) as connection:
        assert not any("hunter2" in line for line in shell(connection, "env"))
        connection.execute("CREATE EXTENSION dblink")
        own = connection.execute("SHOW data_directory").fetchone()
        query = "SELECT * FROM dblink('user=postgres', 'SHOW data_directory') AS answer (path text)"
        assert connection.execute(query).fetchone() == own
        assert str(other.directory) not in str(own)
        interfaces = [line.split(":")[0].strip() for line in shell(connection, "cat /proc/net/dev") if ":" in line]
        assert not server.offline or interfaces == ["lo"]


def test_the_test_servers_come_back_after_a_crash() -> None:
    with running_server(15) as server:
        server.create_database("crm", encoding="LATIN1", locale="C")
        with server.connect("crm") as connection:
            connection.execute("CREATE TABLE contacts AS SELECT generate_series(1, 10)")
        server.crash()
        with pytest.raises(psycopg.OperationalError):
            server.connect("crm")
        server.start()
        server.restart("immediate")
        with server.connect("crm") as connection:
            assert connection.execute("SELECT count(*) FROM contacts").fetchone() == (10,)
            assert connection.execute("SHOW server_encoding").fetchone() == ("LATIN1",)
        server.drop_database("crm")
    assert not server.directory.exists()

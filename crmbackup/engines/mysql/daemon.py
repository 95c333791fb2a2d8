"""Running the server program of MySQL or MariaDB: which one, its files, its start.

Searched in this order: the directory that the policy names, the PATH, where distributions put it.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import pymysql

from crmbackup.core.errors import ProgramMissing
from crmbackup.core.files import local_error
from crmbackup.engines import private
from crmbackup.engines.mysql.connection import Server, Version, connect, text_of
from crmbackup.engines.private import Account, hand_over

SUPERUSER = "root"
SOCKET = "server.sock"
#: How it ends: at once, since its files are about to be removed.
AT_ONCE = signal.SIGKILL
_NAMES = {"mariadb": ("mariadbd", "mysqld"), "mysql": ("mysqld",)}
_DIRECTORIES = (
    "/usr/sbin",
    "/usr/libexec",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/local/mysql/bin",
    "/opt/homebrew/bin",
)
_PACKAGES = {"mariadb": "mariadb-server", "mysql": "mysql-server"}
_VERSION = re.compile(r"\bVer (\d+)\.(\d+)\.(\d+)")
_INSTALLERS = ("mariadb-install-db", "mysql_install_db")


@dataclass(frozen=True)
class Daemon:
    """One server program of one version."""

    path: Path
    version: Version


def find_daemon(wanted: Version, directory: Path | None = None) -> Daemon:
    """The oldest of the same product that is not older in its first two numbers. Raises ProgramMissing."""
    found = list(_daemons(wanted.flavour, directory))
    fitting = [each for each in found if each.version.number[:2] >= wanted.number[:2]]
    if fitting:
        return min(fitting, key=lambda each: each.version.number)
    others = ", ".join(f"{each.path} of {each.version.text}" for each in found)
    release = Version(wanted.flavour, wanted.number[:2]).text
    package = _PACKAGES[wanted.flavour]
    raise ProgramMissing(
        f"the server of {release} or later is not on this host",
        why=f"only {others}" if others else "none was found",
        hint=f"install {package}, name the directory of its programs in source.programs, or name a server in "
        "drill.target",
    )


def _daemons(flavour: str, directory: Path | None) -> Iterator[Daemon]:
    seen: set[Path] = set()
    for name in _NAMES[flavour]:
        if directory:
            paths = [directory / name]
        else:
            on_path = shutil.which(name)
            paths = [*([Path(on_path)] if on_path else []), *(Path(place, name) for place in _DIRECTORIES)]
        for path in paths:
            real = path.resolve()
            if real in seen or not os.access(path, os.X_OK):
                continue
            seen.add(real)
            version = _version(real)
            if version and version.flavour == flavour:
                yield Daemon(real, version)


@lru_cache(maxsize=64)
def _version(path: Path) -> Version | None:
    try:
        done = subprocess.run(
            [path, "--no-defaults", "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_version(done.stdout) if done.returncode == 0 else None


def parse_version(text: str) -> Version | None:
    """Product and version, as the program tells them."""
    match = _VERSION.search(text)
    if not match:
        return None
    return Version("mariadb" if "mariadb" in text.lower() else "mysql", tuple(map(int, match.groups())))


def make_data(daemon: Daemon, data: Path, account: Account | None) -> None:
    """Make the files of a new server, with the user `root` without a password, at its socket only.

    Raises ProgramMissing, DiskFull, LocalError kinds.
    """
    hand_over(data, account)
    text = private.prepare(_data_command(daemon, data), account, "the making of its files")
    if text:
        raise private.failure(f"a private server of {daemon.version.text} cannot be made", text)


def _data_command(daemon: Daemon, data: Path) -> Sequence[str]:
    if not daemon.version.mariadb:
        return [str(daemon.path), "--no-defaults", "--initialize-insecure", f"--datadir={data}"]
    home = daemon.path.parent.parent
    return [
        str(find_installer(daemon)),
        "--no-defaults",
        f"--datadir={data}",
        # Each server that starts removes what looks like temporary tables from there, those of others too.
        f"--tmpdir={data}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
        "--skip-name-resolve",
        "--innodb-log-file-size=8M",
        "--innodb-flush-log-at-trx-commit=0",
        *([f"--basedir={home}"] if home != Path("/usr") else []),
    ]


def find_installer(daemon: Daemon) -> Path:
    """The program that makes the files of a new server, which MySQL's server does itself. Raises ProgramMissing."""
    if not daemon.version.mariadb:
        return daemon.path
    home = daemon.path.parent
    for name in _INSTALLERS:
        for place in (home, home.parent / "bin", home.parent / "scripts"):
            if os.access(place / name, os.X_OK):
                return place / name
    raise ProgramMissing(
        f"{_INSTALLERS[0]} is not beside {daemon.path}", hint=f"install {_PACKAGES['mariadb']} completely"
    )


def socket_settings(directory: Path, socket: Path) -> dict[str, str]:
    """Reachable through that socket only; nothing is read from or written to elsewhere. directory: all of it is there."""
    return {
        "datadir": str(directory / "data"),
        "socket": str(socket / SOCKET),
        "pid_file": str(socket / "server.pid"),
        "tmpdir": str(socket),
        "skip_networking": "1",
        "skip_name_resolve": "1",
        "secure_file_priv": str(socket),
        "plugin_dir": str(socket),  # none is there, so that none can be loaded
        "character_set_server": "utf8mb4",
        "local_infile": "1",
        "max_allowed_packet": "1G",
        "performance_schema": "0",
    }


def write_settings(path: Path, settings: Mapping[str, str]) -> None:
    """An option file. Raises LocalError kinds."""
    escaped = {name: value.replace("\\", "\\\\").replace('"', '\\"') for name, value in settings.items()}
    try:
        path.write_text("[mysqld]\n" + "".join(f'{name} = "{value}"\n' for name, value in escaped.items()), "utf-8")
        path.chmod(0o644)
    except OSError as error:
        raise local_error(error, f"write {path}") from error


def socket_server(socket: Path) -> Server:
    """How to reach the server whose socket is in that directory."""
    return Server("localhost", 3306, SUPERUSER, "", (("socket", str(socket / SOCKET)),))


def start(
    daemon: Daemon,
    settings: Path,
    log: Path,
    account: Account | None,
    *,
    keep: Sequence[int] = (),
    offline: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a server with an option file; it may not answer yet. Raises LocalError kinds."""
    command = [str(daemon.path), f"--defaults-file={settings}"]
    return private.launch(command, log, account, AT_ONCE, keep=keep, offline=offline)


def wait_until_ready(process: subprocess.Popen[bytes], server: Server, log: Path, version: Version) -> None:
    """Until a connection succeeds. Raises DiskFull, LocalError; stops the server then."""

    def refusal() -> str:
        if not Path(dict(server.options)["socket"]).exists():
            return "it has not made its socket"
        try:
            # PyMySQL does not close the socket of a connection that is refused.
            with socket.socket(socket.AF_UNIX) as probe:
                probe.connect(dict(server.options)["socket"])
            with closing(connect(server)):
                return ""
        except (pymysql.Error, OSError) as error:
            return text_of(error)

    private.wait_until_ready(process, refusal, log, f"a private server of {version.text}", AT_ONCE)

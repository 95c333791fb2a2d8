"""pg_restore at work on the definitions of a snapshot."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from crmbackup.core.errors import DiskFull, ObjectDamaged, TargetDenied, TargetError, TargetUnavailable
from crmbackup.core.files import local_error
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.programs import Program, complaint, environment, find_program
from crmbackup.engines.postgres.restore_toc import Entry, parse_toc

#: Which pg_restore knows an archive's format: its minor number from the major version on (pg_backup_archiver.h).
_FORMATS = ((16, 17), (15, 16))
#: From this version on each session of pg_restore begins with a setting that servers before do not know.
_TRANSACTION_TIMEOUT = 17
_UNKNOWN_SETTING = re.compile(
    r"^pg_restore: error: [^\n]*transaction_timeout[^\n]*\nCommand was: SET transaction_timeout = 0;\n+", re.MULTILINE
)
#: The second line of an error counts too: a name that looks like the lines above cannot take both.
_ERROR = re.compile(r"^(pg_restore: error|Command was): ", re.MULTILINE)
_CAME_TO_THE_END = re.compile(r"^pg_restore: warning: errors ignored on restore: \d+\n*\Z", re.MULTILINE)
#: More objects than these take more locks in one transaction than a server has by default.
_ONE_TRANSACTION = 1000
#: What was asked for, up to where values, bodies or secrets could begin.
_COMMAND = re.compile(r"Command was: ([^'($;]{1,200})")
_BROKEN_KEY = "the source's own rows break it: --foreign-keys not-valid brings all back, and names every such key"
_QUERY = re.compile(r"could not execute query: (?:ERROR|FATAL|PANIC):\s+(.*)")


def program_for(archive: bytes, major: int, directory: Path | None) -> Program:
    """The pg_restore for an archive (its first bytes are enough) of a server of version `major`. Raises ProgramMissing.

    Raises ObjectDamaged for what is no archive.
    """
    if len(archive) < 8 or archive[:5] != b"PGDMP":
        raise ObjectDamaged(
            "the definitions of the snapshot cannot be read", why="they do not begin as an archive does"
        )
    written = next((since for minor, since in _FORMATS if archive[6] >= minor), 0)
    return find_program("pg_restore", at_least=max(major, written), directory=directory)


def list_entries(program: Program, archive: Path) -> list[Entry]:
    """What the archive holds. Raises ObjectDamaged, LocalError kinds."""
    return parse_toc(_said(_read(program, archive, "--list", "--verbose")))


def statement_of(program: Program, archive: Path, entry: Entry) -> bytes:
    """The one statement that makes this foreign key or comment; without its semicolon, in the archive's encoding.

    Raises ObjectDamaged, LocalError kinds.
    """
    wanted = archive.with_suffix(".one")
    wanted.write_text(f"{entry.id};\n", "ascii")
    text = _read(program, archive, "--file=-", f"--use-list={wanted}")
    # In comments names have no line breaks; in the statement they may have anything.
    first = b"\nCOMMENT ON " if entry.kind == "COMMENT" else b"\nALTER TABLE "
    begin, end = text.find(first), text.rfind(b";\n\n\n--\n-- PostgreSQL database dump complete")
    if begin < 0 or end < begin:
        raise ObjectDamaged("the definitions of the snapshot cannot be read", why=f"no statement for {entry.label}")
    return text[begin + 1 : end]


def text_of_entries(program: Program, archive: Path, entries: Iterable[Entry]) -> bytes:
    """What makes these objects, in the archive's encoding, each under its number. Raises ObjectDamaged, LocalError kinds."""
    wanted = archive.with_suffix(".text")
    wanted.write_text("".join(f"{entry.id};\n" for entry in entries), "ascii")
    return _read(program, archive, "--verbose", "--no-tablespaces", "--file=-", f"--use-list={wanted}")


def _read(program: Program, archive: Path, *options: str) -> bytes:
    """What pg_restore prints of an archive. Raises ObjectDamaged, LocalError kinds."""
    try:
        done = subprocess.run(
            [str(program.path), *options, str(archive)],
            env=environment({}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise local_error(error, f"run {program.path}") from error
    if done.returncode:
        raise ObjectDamaged("the definitions of the snapshot cannot be read", why=complaint(_said(done.stderr)))
    return done.stdout


def run_section(
    program: Program,
    server: Server,
    server_major: int,
    archive: Path,
    section: str,
    entries: Iterable[Entry],
    *,
    jobs: int = 1,
    ours: bool = False,
    token: str = "",
) -> None:
    """Make the objects of one section, "pre-data" or "post-data". ours: all belong to the user that connects.

    token: what its sessions are called.

    Raises TargetError kinds at the first that the server refuses, DiskFull. A program that sets what the server does not
    know has to go on after errors; then it makes the rest of the section before this raises. What several jobs say then
    would be mixed up, so there is one.
    """
    chosen = list(entries)
    if not chosen:
        return
    wanted = archive.with_suffix(f".{section}")
    wanted.write_text("".join(f"{entry.id};\n" for entry in chosen), "ascii")
    goes_on = program.major >= _TRANSACTION_TIMEOUT > server_major
    options = [
        f"--section={section}",
        "--no-password",
        "--no-tablespaces",
        f"--use-list={wanted}",
        "--dbname=",  # where to connect to is in the environment
    ]
    if not goes_on:
        options.append("--exit-on-error")
        if jobs > 1:
            options.append(f"--jobs={jobs}")
        elif len(chosen) <= _ONE_TRANSACTION:
            options.append("--single-transaction")
    if ours:
        options += ["--no-owner", "--no-privileges"]
    _run([str(program.path), *options, str(archive)], server, token, goes_on=goes_on)


def _run(command: Sequence[str], server: Server, token: str, *, goes_on: bool) -> None:
    named = {"PGAPPNAME": token} if token else {}
    try:
        done = subprocess.run(
            command,
            env={**environment(server.environment()), **named},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    except OSError as error:
        raise local_error(error, f"run {command[0]}") from error
    if not done.returncode:
        return
    text = _said(done.stderr)
    if goes_on:
        text = _UNKNOWN_SETTING.sub("", text)
        if done.returncode == 1 and not _ERROR.search(text) and _CAME_TO_THE_END.search(text):
            return
    raise _refusal(text, server, done.returncode)


def _said(message: bytes) -> str:
    """It is in the archive's encoding; what is not UTF-8 is most often one of the Latin ones."""
    try:
        return message.decode("utf-8")
    except UnicodeDecodeError:
        return message.decode("latin-1")


def _refusal(text: str, server: Server, code: int) -> TargetError | DiskFull:
    queries, commands = _QUERY.findall(text), _COMMAND.findall(text)
    what = " ".join(commands[0].split()) if commands else "a definition"
    why = " ".join(queries[0].split()) if queries else complaint(text) or f"pg_restore ended with {code}"
    if "No space left" in text or "could not extend file" in text:
        return DiskFull(f"the disk of the server of {server.name} is full", why=f"{what}: {why}")
    if "connection to server" in text or "server closed the connection" in text:
        return TargetUnavailable(f"the target {server.name} cannot be used", why=why, hint="look into the server's log")
    if any(
        part in why
        for part in ("permission denied", "must be owner", "must be member", "must be superuser", "must be able to")
    ):
        return TargetDenied(
            f"the target {server.name} refuses {what}",
            why=why,
            hint="restore as the database's owner or a superuser, or with --roles ignore",
        )
    broken = "violates foreign key constraint" in why
    return TargetError(f"the target {server.name} refuses {what}", why=why, hint=_BROKEN_KEY if broken else "")

"""References to secrets and the values behind them.

A policy holds references only. Values are resolved by the wiring, kept in `Secret` so that no log, error or
traceback prints them, and never put on a command line.
"""

from __future__ import annotations

import subprocess  # allowed here only for {command: [...]} references
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.errors import SecretUnavailable

COMMAND_SECONDS = 30


class Secret:
    """A value that does not print itself."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value, for the one call that needs it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(***)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash(self._value)


@dataclass(frozen=True)
class EnvRef:
    """The value of an environment variable."""

    env: str


@dataclass(frozen=True)
class FileRef:
    """The content of a file, without a trailing line end."""

    file: str


@dataclass(frozen=True)
class CommandRef:
    """The standard output of a program, without a trailing line end. No shell."""

    command: tuple[str, ...]


SecretRef = EnvRef | FileRef | CommandRef


def resolve(reference: SecretRef, environ: Mapping[str, str]) -> Secret:
    """The secret behind a reference. Raises SecretUnavailable; an empty value counts as missing."""
    if isinstance(reference, EnvRef):
        origin = f"environment variable {reference.env}"
        value = environ.get(reference.env, "")
        why = "it is not set, or empty"
    elif isinstance(reference, FileRef):
        origin = f"file {reference.file}"
        why = "it is empty"
        try:
            value = Path(reference.file).expanduser().read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            value = ""
            why = getattr(error, "strerror", None) or str(error)
    else:
        origin = f"command {reference.command[0]}"
        value, why = _run(reference.command, environ)
    value = value.rstrip("\r\n")
    if not value:
        raise SecretUnavailable(
            f"cannot get a secret from {origin}",
            why=why,
            hint="cron has an almost empty environment: prefer {file: ...} with mode 0600 in policies run by cron",
        )
    return Secret(value)


def _run(argv: tuple[str, ...], environ: Mapping[str, str]) -> tuple[str, str]:
    """Standard output and, when it is of no use, the reason. Standard error may hold the secret: it is not kept."""
    try:
        done = subprocess.run(
            list(argv), env=dict(environ), capture_output=True, timeout=COMMAND_SECONDS, check=False, text=True
        )
    except subprocess.TimeoutExpired:
        return "", f"no answer in {COMMAND_SECONDS} s"
    except (OSError, UnicodeDecodeError) as error:
        return "", str(error)
    if done.returncode != 0:
        return "", f"it ended with exit code {done.returncode}"
    return done.stdout, "it printed nothing"

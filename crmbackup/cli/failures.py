"""From whatever was raised to one error that a user understands."""

from __future__ import annotations

import contextlib
import json
import traceback

import click

from crmbackup.cli.exit_codes import exit_code
from crmbackup.cli.render import printable
from crmbackup.core.errors import CrmBackupError, Interrupted, LocalError, UsageError


def explain(error: Exception) -> CrmBackupError:
    """The error of ours that stands for any other."""
    if isinstance(error, CrmBackupError):
        return error
    if isinstance(error, click.Abort):
        return Interrupted("interrupted", why="a question was not answered")
    if isinstance(error, OSError):
        from crmbackup.core.files import local_error

        return local_error(error, "go on" if error.filename is None else f"use {error.filename}")
    if isinstance(error, UnicodeEncodeError) and error.encoding.lower() == "utf-8":
        return LocalError(
            f"a name holds bytes that are not UTF-8: {error.object[error.start : error.end]!a}",
            hint="give the file or directory another name",
        )
    if isinstance(error, UnicodeEncodeError):
        return LocalError(
            f"the locale has no way to write {error.object[error.start : error.end]!a}",
            hint="set one of UTF-8, such as LANG=C.UTF-8",
        )
    return CrmBackupError(
        f"internal error, {type(error).__name__}",
        why=str(error),
        hint="this is a fault in crmbackup: run it with --verbose and report what it prints",
    )


def report(error: Exception, *, as_json: bool, verbose: bool) -> int:
    """Print an error to standard error; gives the exit code. verbose: with the traceback of what is not ours."""
    known = explain(error)
    if known is not error and verbose:
        traceback.print_exception(error)
    code = exit_code(known)
    run_id = vars(error).get("run_id")
    if as_json:
        _report_json(known, code, run_id)
    else:
        _say(f"crmbackup: {known.code}: {printable(str(known), lines=True)}")
        if known.hint:
            _say(f"  hint: {printable(known.hint, lines=True)}")
        if run_id:
            _say(f"  run: {run_id}")
    return code


def _say(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # the exit code tells it too
        click.echo(text, err=True)


def report_usage(error: click.ClickException, *, as_json: bool) -> int:
    """The same for what click finds wrong with the command line."""
    if as_json:
        context = getattr(error, "ctx", None)
        hint = f"read `{context.command_path} --help`" if context else ""
        _report_json(UsageError(error.format_message(), hint=hint), error.exit_code)
    else:
        error.show()
    return error.exit_code


def _report_json(error: CrmBackupError, code: int, run_id: str | None = None) -> None:
    fields = {"type": "error", "code": error.code, "exit_code": code}
    texts = {"message": error.what, "why": error.why, "hint": error.hint}
    run = {"run_id": run_id} if run_id else {}
    _say(json.dumps(fields | texts | run, ensure_ascii=False))

"""Asking before something is deleted."""

from __future__ import annotations

import sys

import click

from crmbackup.core.errors import UsageError


def confirm(question: str, *, yes: bool, as_json: bool) -> None:
    """Go on only if somebody wants it: by --yes, or by an answer on a terminal. Raises UsageError, click.Abort."""
    if yes:
        return
    if as_json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "nothing was deleted",
            why="nobody is there to ask",
            hint="look at --plan, then add --yes",
        )
    if not click.confirm(question):
        raise UsageError("nothing was deleted", why="the answer was no")

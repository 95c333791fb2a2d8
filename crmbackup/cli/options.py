"""Options that several commands share, and what turns their texts into values."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)


def output_options(function: F) -> F:
    """--json and --verbose."""
    said = "Say more, and say it even where output is no terminal."
    function = click.option("-v", "--verbose", is_flag=True, help=said)(function)
    told = "Events and results as JSON lines on standard output, an error as one on standard error."
    return click.option("--json", "as_json", is_flag=True, help=told)(function)


def policy_argument(function: F) -> F:
    """A POLICY that must be given."""
    return click.argument("policy", metavar="POLICY")(function)


def repository_option(function: F) -> F:
    """Where snapshots are, with no policy at all, as on a new host."""
    text = "Instead of a policy: a directory or s3://bucket/prefix?endpoint=...; S3 keys come from the environment."
    return click.option("--repository", "address", metavar="ADDRESS", help=text)(function)


def place_options(function: F) -> F:
    """Where snapshots are: by POLICY or by --repository."""
    return click.argument("policy", metavar="[POLICY]", required=False)(repository_option(function))


def of_option(function: F) -> F:
    """Whose snapshots, where a repository has those of several policies."""
    text = "With --repository: the policy whose snapshots are meant."
    return click.option("--of", "of_policy", metavar="NAME", help=text)(function)


def key_options(function: F) -> F:
    """How snapshots are opened."""
    function = click.option(
        "--passphrase-file",
        type=EXISTING_FILE,
        help="A file with the passphrase of the identity that the repository keeps.",
    )(function)
    return click.option(
        "--identity-file",
        type=EXISTING_FILE,
        help="A file with the identity from the recovery sheet.",
    )(function)


# Converters raise BadParameter; click adds which option it was.


def snapshot_name(value: str) -> str:
    """The word latest, or an id or its beginning."""
    text = value.lower()
    if text != "latest" and not is_snapshot_id(text):
        raise click.BadParameter(f'{value!r} is neither "latest" nor an id, which is up to 16 of 0-9 and a-f')
    return text


def drill_snapshot(value: str) -> str:
    """The same, or "random"."""
    return "random" if value.lower() == "random" else snapshot_name(value)


def is_snapshot_id(text: str) -> bool:
    """Whether a text can be an id or its beginning."""
    return re.fullmatch("[0-9a-f]{1,16}", text) is not None


def moment(value: str) -> datetime:
    """A point in time: ISO 8601, local time unless it has an offset or a Z."""
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        text = f"{value!r} is no time such as 2026-03-01T14:30 (local time) or 2026-03-01T14:30Z"
        raise click.BadParameter(text) from error


def part(value: str) -> tuple[int, int]:
    """n/t: the n-th of t parts."""
    first, slash, second = value.partition("/")
    # Nine digits are enough, and int() has a limit.
    numbers = slash and re.fullmatch("[0-9]{1,9}", first) and re.fullmatch("[0-9]{1,9}", second)
    if numbers and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise click.BadParameter(f"{value!r} is no part such as 2/7; to read everything, put the option last")

"""Options that several commands share, and what turns their texts into values."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])
EXISTING_FILE = click.Path(path_type=Path, exists=True, dir_okay=False, readable=True)


def output_options(function: F) -> F:
    """--json and --verbose."""
    said = "Say more, and say it even where output is no terminal."
    function = click.option("-v", "--verbose", is_flag=True, help=said)(function)
    told = "Events and results as JSON lines on standard output, an error as one on standard error."
    return click.option("--json", "as_json", is_flag=True, help=told)(function)


def complete_policy(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """For the shell: names of policies, or files where a path is begun."""
    from crmbackup.core.errors import CrmBackupError
    from crmbackup.policy.find import list_policies, policy_directories

    if "/" in incomplete:
        return [CompletionItem(incomplete, type="file")]
    try:
        found = list_policies(policy_directories(Path.cwd()))
    except (CrmBackupError, OSError):
        return []
    return [CompletionItem(path.stem) for path in found if path.stem.startswith(incomplete)]


def policy_argument(function: F) -> F:
    """A POLICY that must be given."""
    return click.argument("policy", metavar="POLICY", shell_complete=complete_policy)(function)


def policies_argument(function: F) -> F:
    """Any number of policies; none means all there are."""
    return click.argument("policies", metavar="[POLICY]...", nargs=-1, shell_complete=complete_policy)(function)


def repository_option(function: F) -> F:
    """Where snapshots are, with no policy at all, as on a new host."""
    text = "Instead of a policy: a directory or s3://bucket/prefix?endpoint=...; S3 keys come from the environment."
    return click.option("--repository", "address", metavar="ADDRESS", help=text)(function)


def place_options(function: F) -> F:
    """Where snapshots are: by POLICY or by --repository."""
    argument = click.argument("policy", metavar="[POLICY]", required=False, shell_complete=complete_policy)
    return argument(repository_option(function))


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


def deleting_options(function: F) -> F:
    """--plan and --yes, for what deletes."""
    function = click.option("--yes", is_flag=True, help="Do not ask. Needed where nobody can answer, as under cron.")(
        function
    )
    return click.option("--plan", "plan_only", is_flag=True, help="Only show what would be done.")(function)


def one_snapshot(*, required: bool) -> Callable[[F], F]:
    """One snapshot, where it lies and how it is opened, and the output: for commands that take `policy_and_snapshot`."""
    shown = "[POLICY] SNAPSHOT" if required else "[POLICY] [SNAPSHOT]"

    def add(function: F) -> F:
        function = repository_option(of_option(key_options(output_options(function))))
        return click.argument("names", metavar=shown, nargs=-1, required=required)(function)

    return add


def policy_and_snapshot(
    names: tuple[str, ...], *, with_policy: bool, must_name: bool = False
) -> tuple[str | None, str]:
    """Tell the two apart, in either order: whoever has just read a list of snapshots types the id first.

    must_name: a snapshot must be given; else it is "latest" when it is not.
    """
    if len(names) > 1 + with_policy:
        raise click.UsageError(f"Got unexpected extra argument ({names[1 + with_policy]})")
    if must_name and len(names) < 1 + with_policy:
        raise click.UsageError("Missing argument 'SNAPSHOT': an id, its beginning, or latest.")
    if not with_policy:
        return None, snapshot_name(names[0]) if names else "latest"
    if not names:
        raise click.UsageError("Missing argument 'POLICY', or --repository.")
    if len(names) == 1:
        return names[0], "latest"
    policy, wanted = names
    if not _is_snapshot(wanted) and _is_snapshot(policy):
        policy, wanted = wanted, policy
    return policy, snapshot_name(wanted)


def _is_snapshot(name: str) -> bool:
    return name.lower() == "latest" or is_snapshot_id(name.lower())


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


def part_or_next(value: str) -> tuple[int | None, int | None]:
    """The same, or "next" or "next/t": the part whose turn it is, of t or of as many as the policy says."""
    first, slash, total = value.partition("/")
    if first != "next":
        return part(value)
    return None, part(f"1/{total}")[1] if slash else None


def share(value: str) -> float:
    """A percentage as a number from 0 to 1."""
    from crmbackup.policy.units import parse_percent

    try:
        return parse_percent(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}") from error

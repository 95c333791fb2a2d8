"""crmbackup schedule."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crmbackup.cli.options import F, output_options, policies_argument
from crmbackup.cli.render import Show, make_show, marked, table, until

if TYPE_CHECKING:
    from crmbackup.cli.waking import Waker
    from crmbackup.cli.wiring import Wiring
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.scheduling.wake import Upcoming


@click.group("schedule")
def command() -> None:
    """Let cron or systemd run what is due.

    One entry wakes `crmbackup run --due` whenever something in the policies can come due, and at least every quarter of
    an hour. What is due is decided then, by the policies as they are, each in its own time zone.
    """


def _choose_kind(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    """One of the options that say the kind was read."""
    before = context.params.setdefault("kind", None)
    if given:
        kind = parameter.opts[0].removeprefix("--")
        if before:
            raise click.UsageError(f"--{before} and --{kind} exclude each other.")
        context.params["kind"] = kind


def _waker_options(function: F) -> F:
    """Which kind of waker, where it lies, and as whom it runs."""
    for kind, text in (
        ("systemd", "A hardened service and a timer in /etc/systemd/system."),
        ("cron-d", "The file /etc/cron.d/crmbackup."),
        ("crontab", "A marked block in a user's crontab."),
    ):
        function = click.option(f"--{kind}", is_flag=True, expose_value=False, callback=_choose_kind, help=text)(
            function
        )
    function = click.option("--user", help="As whom crmbackup runs. Default: who calls this.")(function)
    return click.option(
        "--directory",
        type=click.Path(path_type=Path, file_okay=False, exists=True, resolve_path=True),
        help="Where file or units are, if not in the system's place; to prepare an image, for example.",
    )(function)


@command.command("show")
@policies_argument
@_waker_options
@output_options
def show_(
    policies: tuple[str, ...], kind: str | None, user: str | None, directory: Path | None, as_json: bool, verbose: bool
) -> None:
    """List the next runs, and say what wakes crmbackup. With --crontab and the like: the text that install would write."""
    from crmbackup.cli.waking import WAKERS, installations, policies_of, scope_here
    from crmbackup.cli.wiring import wiring

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        scope = scope_here(host, policies)
        loaded = policies_of(scope, show.event)
        if kind:
            text = WAKERS[kind](host, user, directory).wanted(scope, loaded)
            show.result("schedule-text", {"kind": kind, "text": text}, lambda: click.echo(text, nl=False))
            return
        found = installations(host, user, directory)
        _show_next(host, loaded, found, show)


@command.command("install")
@policies_argument
@_waker_options
@output_options
def install(
    policies: tuple[str, ...], kind: str | None, user: str | None, directory: Path | None, as_json: bool, verbose: bool
) -> None:
    """Install the entry, or bring it up to date.

    Every other line stays as it is. It is for the named policies; without names for all that are found from the current directory and in
    /etc/crmbackup/policies, also those that come later.
    """
    from crmbackup.cli.policies import secrets_from_environment
    from crmbackup.cli.waking import WAKERS, installations, policies_of, scope_here
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.events import Warned

    if kind is None:
        raise click.UsageError("Say where: --crontab, --cron-d or --systemd.")
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        waker = WAKERS[kind](host, user, directory)
        scope = scope_here(host, policies)
        loaded = policies_of(scope, show.event)
        wanted = waker.wanted(scope, loaded)
        changed = waker.installed() != wanted
        left = waker.install(wanted) if changed else ""
        for each in loaded:
            names = secrets_from_environment(each)
            if names:
                why = f"{each.policy.name} takes secrets from the environment, which is empty then: {', '.join(names)}"
                show.event(Warned("secret-in-environment", why, "keep them in files: {file: /path}"))
        for other, _ in installations(host, user, directory):
            if other.kind != kind:
                why = f"crmbackup is woken by {other.place} too"
                show.event(Warned("woken-twice", why, f"`crmbackup schedule remove --{other.kind}`"))
        data = {"kind": kind, "place": waker.place, "changed": changed, "left_to_do": left}

        def text() -> None:
            click.echo(f"Installed in {waker.place}" if changed else f"{waker.place} is up to date already")
            if left:
                click.echo(f"Now run: {left}")
            _table(upcoming_of(host, loaded), host.clock.now())

        show.result("schedule-installed", data, text)


@command.command("remove")
@_waker_options
@output_options
def remove(kind: str | None, user: str | None, directory: Path | None, as_json: bool, verbose: bool) -> None:
    """Remove the entry.

    From wherever it is, or from the place that is named. Every other line stays as it is.
    """
    from crmbackup.cli.waking import installations
    from crmbackup.cli.wiring import wiring

    with make_show(as_json=as_json, verbose=verbose) as show:
        found = [waker for waker, _ in installations(wiring(), user, directory) if kind in (None, waker.kind)]
        for waker in found:
            waker.remove()
        places = [waker.place for waker in found]

        def text() -> None:
            click.echo(f"Removed from {' and '.join(places)}" if places else "Nothing was installed")

        show.result("schedule-removed", {"places": places}, text)


@command.command("diff")
@policies_argument
@_waker_options
@output_options
def diff(
    policies: tuple[str, ...], kind: str | None, user: str | None, directory: Path | None, as_json: bool, verbose: bool
) -> None:
    """Show what install would change.

    The exit code is 14 when what is installed is not what the policies call for. With --crontab and the like and nothing installed there: what install would add.
    """
    from crmbackup.cli.waking import WAKERS, installations, scope_here, scope_installed, wanted_for
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import AttentionNeeded

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        found = [(waker, text) for waker, text in installations(host, user, directory) if kind in (None, waker.kind)]
        if not found and kind:
            found = [(WAKERS[kind](host, user, directory), "")]
        if not found:
            raise not_installed()
        differ = False
        for waker, old in found:
            scope = scope_here(host, policies) if policies or not old else scope_installed(old)
            new = wanted_for(waker, scope, show.event)
            lines = list(difflib.unified_diff(_lines(old), _lines(new), "installed", "policies", lineterm=""))
            differ = differ or bool(lines)
            data = {"place": waker.place, "kind": waker.kind, "differs": bool(lines), "diff": lines}

            def text(waker: Waker = waker, lines: Sequence[str] = tuple(lines)) -> None:
                click.echo("\n".join(lines) if lines else f"{waker.place} is as the policies call for")

            show.result("schedule-diff", data, text)
        if differ:
            kinds = " ".join(f"--{waker.kind}" for waker, _ in found)
            raise AttentionNeeded(
                "the installed schedule is not what the policies call for",
                hint=f"`crmbackup schedule install {kinds}` brings it up to date",
            )


def not_installed() -> Exception:
    """The error when nothing wakes crmbackup."""
    from crmbackup.core.errors import AttentionNeeded

    return AttentionNeeded(
        "nothing wakes crmbackup on this machine",
        hint="`crmbackup schedule install --systemd` (or --cron-d, --crontab)",
    )


def _lines(text: str) -> list[str]:
    return text.splitlines()


def upcoming_of(host: Wiring, loaded: Sequence[LoadedPolicy]) -> list[Upcoming]:
    """The next time of everything that these policies schedule."""
    from crmbackup.scheduling.wake import all_upcoming

    return all_upcoming([each.policy for each in loaded], host.clock.now())


def _show_next(host: Wiring, loaded: Sequence[LoadedPolicy], found: Sequence[tuple[Waker, str]], show: Show) -> None:
    entries = upcoming_of(host, loaded)
    data: dict[str, Any] = {
        "installed": [{"kind": waker.kind, "place": waker.place} for waker, _ in found],
        "next": [vars(each) for each in entries],
    }

    def text() -> None:
        _table(entries, host.clock.now())
        if not entries:
            click.echo("Nothing is scheduled")
        for waker, _ in found:
            click.echo(f"Woken by {waker.place}")
        if not found:
            marked(
                "", None, "Nothing wakes crmbackup yet: crmbackup schedule install --systemd (or --cron-d, --crontab)"
            )

    show.result("schedule", data, text)


def _table(entries: Sequence[Upcoming], now: datetime) -> None:
    columns = [("Policy", False), ("Run", False), ("Schedule", False), ("Next", False), ("In", True)]
    rows = [
        [
            each.policy,
            each.key,
            each.expression,
            f"{each.moment:%a %Y-%m-%d %H:%M} {each.timezone}",
            until(each.moment, now),
        ]
        for each in entries
    ]
    if rows:
        table(columns, rows)

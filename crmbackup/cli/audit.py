"""crmbackup audit."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from crmbackup.cli.options import output_options
from crmbackup.cli.render import make_show, plural, printable, when

if TYPE_CHECKING:
    from crmbackup.core.audit import Head


@click.group("audit")
def command() -> None:
    """Show and verify the audit log of this host."""


@command.command("show")
@click.option("--policy", metavar="NAME", help="Only what concerns this policy.")
@click.option("--event", metavar="WORD", help="Only events of this kind, such as restore.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many, the newest ones.")
@output_options
def show(policy: str | None, event: str | None, limit: int, as_json: bool, verbose: bool) -> None:
    """List restores, deletions, uses of the identity and changes of policies on this host, the oldest first."""
    from crmbackup.cli.wiring import wiring

    with make_show(as_json=as_json, verbose=verbose) as output:
        log = wiring().auditor.log
        wanted = [
            entry
            for entry in log.entries()
            if (policy is None or entry["policy"] == policy) and (event is None or entry["event"] == event)
        ][-limit:]
        if as_json:
            for entry in wanted:
                output.result("audit", entry, lambda: None)
            return
        output.result("entries", {}, lambda: click.echo("\n".join(map(_text, wanted)) or "nothing is noted yet"))


def _text(entry: dict[str, Any]) -> str:
    from crmbackup.core.clock import from_text

    data = ", ".join(
        f"{key}: {_short(value)}" for key, value in entry["data"].items() if value not in (None, "", False)
    )
    who = entry["operator"] or "-"
    text = f"{entry['n']:>6}  {when(from_text(entry['time']), zone=False)}  {who}  {entry['policy'] or '-'}"
    return printable(f"{text}  {entry['event']}  {data}")


def _short(value: object) -> object:
    """Digests by their beginning; --json has the whole."""
    return f"{value[:16]}..." if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) else value


def _head(value: str) -> Head:
    from crmbackup.core.audit import Head

    found = re.fullmatch("([0-9]{1,12}):([0-9a-f]{64})", value.strip().lower())
    if not found:
        raise click.BadParameter(f"{value!r} is no head: a number, a colon and 64 hexadecimal digits")
    return Head(int(found[1]), found[2])


@command.command("verify")
@click.option(
    "--head",
    "known",
    type=_head,
    metavar="N:HASH",
    help="A head that was noted elsewhere, as messages and logs have it: that entry must still be there.",
)
@output_options
def verify(known: Head | None, as_json: bool, verbose: bool) -> None:
    """Verify that no line of the audit log was changed, removed, moved or put in between."""
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import ObjectDamaged

    with make_show(as_json=as_json, verbose=verbose) as output:
        log = wiring().auditor.log
        found = log.verify(known)
        data = {
            "file": str(log.path),
            "entries": found.entries,
            "head": str(found.head),
            "flaws": list(found.flaws),
            "passed": not found.flaws,
        }

        def text() -> None:
            for flaw in found.flaws:
                click.echo(f"  {flaw}")
            if not found.flaws:
                entries = "1 entry" if found.entries == 1 else f"{found.entries} entries"
                click.echo(f"{log.path} is whole: {entries}, head {found.head}")

        output.result("audit-verified", data, text)
        if found.flaws:
            raise ObjectDamaged(
                f"the audit log {log.path} is not what was written: {plural(len(found.flaws), 'flaw')}",
                hint="find out who could write to it; heads in messages and other logs tell up to where it is right",
            )

"""crmbackup notify."""

from __future__ import annotations

from functools import partial

import click

from crmbackup.cli.options import output_options, policy_argument
from crmbackup.cli.render import make_show, plural


@click.group("notify")
def command() -> None:
    """Try out messages and pings."""


@command.command("test")
@policy_argument
@output_options
def test(policy: str, as_json: bool, verbose: bool) -> None:
    """Send a test message to everybody whom the policy tells of anything, and say whether it arrived.

    Checks of a dead man's switch get a ping to /log, which shows there and changes nothing.
    """
    from crmbackup.cli.telling import try_all
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import NotifyFailed, UsageError

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        loaded = host.load(policy)
        results = try_all(host, loaded)
        if not results:
            raise UsageError(
                f"the policy {loaded.policy.name} tells nobody", hint="docs/policy.md describes the section notify"
            )
        for name, why in results:
            data = {"receiver": name, "arrived": not why, "why": why}
            text = f"{name}: {'NOT reached: ' + why if why else 'reached'}"
            show.result("notified", data, partial(click.echo, text))
        bad = [name for name, why in results if why]
        if bad:
            raise NotifyFailed(
                f"{len(bad)} of {plural(len(results), 'receiver')} not reached: {', '.join(bad)}",
                hint="check the address that the policy refers to, and the network",
            )

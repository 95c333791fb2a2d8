"""crmbackup pin."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import click

from crmbackup.cli.options import moment, one_snapshot, policy_and_snapshot
from crmbackup.cli.render import make_show


@click.command("pin")
@click.option("--until", type=moment, metavar="TIME", help="Until then, local time or with Z. Default: until unpinned.")
@click.option("--why", required=True, metavar="TEXT", help="For people. Whoever can read the storage can read it.")
@one_snapshot(required=True)
def command(
    names: tuple[str, ...],
    until: datetime | None,
    why: str,
    address: str | None,
    of_policy: str | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Keep one snapshot, whatever the retention rules say.

    SNAPSHOT is "latest", or an id or its beginning. With --repository no POLICY is given. The pin lies in the
    repository, so every host sees it; it is signed by this host or, with the identity, by the owner. Pinning again
    replaces the pin.
    """
    from crmbackup.cli.lookup import choose_snapshot
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.errors import UsageError
    from crmbackup.operations.forget import pin_text
    from crmbackup.repository.records import SnapshotPin, put_pin

    policy, wanted = policy_and_snapshot(names, with_policy=address is None, must_name=True)
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        if until is not None and until <= host.clock.now():
            raise UsageError("--until is in the past", hint="leave it out to pin until `crmbackup unpin`")
        if not why.strip() or not why.isprintable():
            raise UsageError("--why must be one line of text, not empty")
        place = host.place(policy, address)
        repository = host.open_keeper(place, Keys(identity_file, passphrase_file))
        header = choose_snapshot(repository, of_policy or place.policy_name, wanted, show.event, host.clock.now())
        pin = SnapshotPin(
            policy=header.policy,
            snapshot_id=header.snapshot_id,
            until=until,
            why=why.strip(),
            by=host.operator,
            host=host.host,
            created=host.clock.now(),
        )
        host.auditor.record("pin", header.policy, {"snapshot_id": header.snapshot_id, "why": pin.why})
        put_pin(repository, pin, host.author(repository))
        text = f"{header.snapshot_id} of {header.policy} is {pin_text(pin)}"
        show.result("pin", {**vars(pin), "key": pin.key}, lambda: click.echo(text))

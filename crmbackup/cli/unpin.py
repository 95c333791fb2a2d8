"""crmbackup unpin."""

from __future__ import annotations

from pathlib import Path

import click

from crmbackup.cli.options import one_snapshot, policy_and_snapshot
from crmbackup.cli.render import make_show


@click.command("unpin")
@one_snapshot(required=True)
def command(
    names: tuple[str, ...],
    address: str | None,
    of_policy: str | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Take the pin off a snapshot: the retention rules decide about it again.

    SNAPSHOT is "latest", or an id or its beginning. With --repository no POLICY is given.
    """
    from crmbackup.cli.lookup import choose_snapshot
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.errors import SnapshotNotFound
    from crmbackup.repository.records import find_pins, pin_key

    policy, wanted = policy_and_snapshot(names, with_policy=address is None, must_name=True)
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        repository = host.open_keeper(place, Keys(identity_file, passphrase_file))
        header = choose_snapshot(repository, of_policy or place.policy_name, wanted, show.event, host.clock.now())
        if header.snapshot_id not in find_pins(repository, header.policy).names():
            raise SnapshotNotFound(
                f"{header.snapshot_id} has no pin", hint="`crmbackup snapshots` shows which have one"
            )
        host.auditor.record("unpin", header.policy, {"snapshot_id": header.snapshot_id}, required=True)
        repository.storage.delete(pin_key(header.policy, header.snapshot_id))
        data = {"snapshot_id": header.snapshot_id, "policy": header.policy}
        show.result(
            "unpin", data, lambda: click.echo(f"{header.snapshot_id} of {header.policy} is not pinned any more")
        )

"""crmbackup snapshots."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import of_option, output_options, place_options
from crmbackup.cli.render import make_show, printable, size, table, when

if TYPE_CHECKING:
    from crmbackup.repository.manifest import ManifestHeader


@click.command("snapshots")
@place_options
@of_option
@output_options
def command(policy: str | None, address: str | None, of_policy: str | None, as_json: bool, verbose: bool) -> None:
    """List snapshots: of the policy, or of a whole repository. Needs no key."""
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.events import Warned
    from crmbackup.operations.forget import pin_text
    from crmbackup.repository.records import find_pins

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        repository = host.open_keyless(place)
        listing = repository.snapshots(of_policy or place.policy_name)
        for problem in listing.problems:
            show.event(Warned(problem.code, str(problem), problem.hint))
        pins = {name: find_pins(repository, name) for name in {header.policy for header in listing.headers}}
        now = host.clock.now()

        def pinned(header: ManifestHeader) -> str:
            pin = pins[header.policy].valid.get(header.snapshot_id)
            doubt = pins[header.policy].doubtful.get(header.snapshot_id)
            if pin is None:
                return str(doubt or "")
            return pin_text(pin) if pin.holds(now) else f"its pin is over since {when(pin.until or now)}: {pin.why}"

        if as_json:
            for header in listing.headers:
                pin = pins[header.policy].valid.get(header.snapshot_id)
                fields = {
                    **vars(header),
                    "stored_size": header.stored_size,
                    "packs": len(header.packs),
                    "pin": vars(pin) if pin else None,
                }
                show.result("snapshot", fields, lambda: None)
            return

        def text() -> None:
            headers = listing.headers
            if not headers:
                click.echo("no snapshots yet")
                return
            one_policy, one_host = (len({getattr(h, name) for h in headers}) == 1 for name in ("policy", "host"))
            columns = [("Snapshot", False), ("Kind", False), ("Moment (UTC)", False), ("Source", True), ("Added", True)]
            columns += ([] if one_policy else [("Policy", False)]) + ([] if one_host else [("Host", False)])
            rows = [
                [
                    *(h.snapshot_id, h.kind, when(h.captured, zone=False), size(h.source_size), size(h.added_size)),
                    *([] if one_policy else [h.policy]),
                    *([] if one_host else [h.host]),
                ]
                for h in headers
            ]
            table(columns, rows)
            for header in headers:
                if pinned(header):
                    click.echo(printable(f"{header.snapshot_id}: {pinned(header)}"))

        show.result("snapshots", {}, text)

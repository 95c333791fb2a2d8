"""crmbackup snapshots."""

from __future__ import annotations

import click

from crmbackup.cli.options import of_option, output_options, place_options
from crmbackup.cli.render import make_show, size, table, when


@click.command("snapshots")
@place_options
@of_option
@output_options
def command(policy: str | None, address: str | None, of_policy: str | None, as_json: bool, verbose: bool) -> None:
    """List snapshots: of the policy, or of a whole repository. Needs no key."""
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.events import Warned

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        repository = host.open_reader(place, Keys(), need_identity=False)
        listing = repository.snapshots(of_policy or place.policy_name)
        for problem in listing.problems:
            show.event(Warned(problem.code, str(problem), problem.hint))
        if as_json:
            for header in listing.headers:
                fields = {**vars(header), "stored_size": header.stored_size, "packs": len(header.packs)}
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

        show.result("snapshots", {}, text)

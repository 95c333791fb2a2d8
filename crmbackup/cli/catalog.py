"""crmbackup catalog."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import output_options, policy_argument
from crmbackup.cli.render import duration, make_show, plural, size, table, when

if TYPE_CHECKING:
    from crmbackup.catalog.catalog import Catalog

limit_option = click.option(
    "--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many, the newest first."
)


@click.group("catalog")
def command() -> None:
    """Show and rebuild the history of runs and drills."""


@command.command("rebuild")
@policy_argument
@output_options
def rebuild(policy: str, as_json: bool, verbose: bool) -> None:
    """Bring the catalog back from the repository and the drill reports. Needs no key."""
    from crmbackup.cli.history import drill_rows, snapshot_row
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.events import Warned

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        loaded = host.load(policy)
        repository = host.open_keyless(host.policy_place(loaded))
        listing = repository.snapshots()
        for problem in listing.problems:
            show.event(Warned(problem.code, str(problem), problem.hint))
        drills = drill_rows(host, loaded, repository, show.event)
        catalog = host.catalog(loaded)
        try:
            identifier = repository.document.repository_id
            catalog.replace_snapshots(identifier, [snapshot_row(header) for header in listing.headers])
            catalog.replace_drills(identifier, drills)
        finally:
            catalog.close()
        data = {"snapshots": len(listing.headers), "drills": len(drills)}
        text = f"The catalog now has {plural(len(listing.headers), 'snapshot')} and {plural(len(drills), 'drill')}"
        show.result("catalog", data, lambda: click.echo(f"{text} of this repository"))


@command.command("runs")
@click.argument("policy", metavar="[POLICY]", required=False)
@limit_option
@output_options
def runs(policy: str | None, limit: int, as_json: bool, verbose: bool) -> None:
    """List the last backup runs of a policy, or of all on this host, failed ones too."""
    with make_show(as_json=as_json, verbose=verbose) as show, _opened(policy) as (catalog, name):
        found = catalog.runs(policy=name, limit=limit)
        if as_json:
            for run in found:
                show.result("run", vars(run), lambda: None)
            return
        columns = [("Started (UTC)", False), *([] if name else [("Policy", False)]), ("Kind", False)]
        columns += [("Took", True), ("Added", True), ("Result", False)]
        rows = [
            [
                when(run.started_at, zone=False),
                *([] if name else [run.policy]),
                run.kind or "-",
                duration((run.finished_at - run.started_at).total_seconds()) if run.finished_at else "-",
                size(run.bytes_added) if run.snapshot_id and run.bytes_added is not None else "-",
                run.snapshot_id or f"{run.outcome}: {run.error_code}",
            ]
            for run in found
        ]
        show.result("runs", {}, lambda: table(columns, rows) if rows else click.echo("no runs yet"))


@command.command("drills")
@click.argument("policy", metavar="[POLICY]", required=False)
@limit_option
@output_options
def drills(policy: str | None, limit: int, as_json: bool, verbose: bool) -> None:
    """List the last drills of a policy, or of all on this host, failed ones too."""
    with make_show(as_json=as_json, verbose=verbose) as show, _opened(policy) as (catalog, name):
        found = catalog.drills(policy=name)[:limit]
        if as_json:
            for drill in found:
                show.result("drill", vars(drill), lambda: None)
            return
        columns = [("Started (UTC)", False), *([] if name else [("Policy", False)])]
        columns += [("Restore", False), ("Validation", False), ("Objectives", False), ("RTO", True), ("RPO", True)]
        rows = [
            [
                when(drill.started_at, zone=False),
                *([] if name else [drill.policy]),
                drill.restore,
                drill.validation.replace("-", " "),
                drill.objectives.replace("-", " "),
                "-" if drill.rto_seconds is None else duration(drill.rto_seconds),
                "-" if drill.rpo_seconds is None else duration(drill.rpo_seconds),
            ]
            for drill in found
        ]
        show.result("drills", {}, lambda: table(columns, rows) if rows else click.echo("no drills yet"))


@contextmanager
def _opened(policy: str | None) -> Iterator[tuple[Catalog, str | None]]:
    """The catalog of a policy and its name, or this host's catalog."""
    from crmbackup.cli.wiring import wiring

    host = wiring()
    loaded = host.load(policy) if policy else None
    catalog = host.catalog(loaded)
    try:
        yield catalog, loaded.policy.name if loaded else None
    finally:
        catalog.close()

"""crmbackup restore."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import key_options, moment, of_option, output_options, place_options, snapshot_name
from crmbackup.cli.render import count, duration, make_show, plural, printable, size, table, when

if TYPE_CHECKING:
    from crmbackup.operations.restore import RestorePlan

STOP_FIRST = "stop the CRM before this file is replaced: a program that has it open would go on with the old one"


@click.command("restore")
@place_options
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="The database file to make.")
@click.option(
    "--snapshot",
    "wanted",
    type=snapshot_name,
    metavar="ID",
    default="latest",
    show_default=True,
    help="An id or its beginning.",
)
@click.option(
    "--at", type=moment, metavar="TIME", help="The newest snapshot from this time or before, local or with Z."
)
@of_option
@click.option("--plan", "plan_only", is_flag=True, help="Only show what would be done.")
@click.option("--overwrite", is_flag=True, help="Replace the target if it exists.")
@click.option("--jobs", type=click.IntRange(1, 64), help="How many packs at a time. Default: the policy's, or 2.")
@key_options
@output_options
def command(
    policy: str | None,
    address: str | None,
    target: Path,
    wanted: str,
    at: datetime | None,
    of_policy: str | None,
    plan_only: bool,
    overwrite: bool,
    jobs: int | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Bring a database back as the file --to.

    The plan is shown first. The target appears only when everything was verified, and never half.
    """
    from crmbackup.cli.lookup import choose_snapshot
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.errors import UsageError
    from crmbackup.core.events import Warned
    from crmbackup.operations.restore import plan_restore, run_restore

    if at is not None and wanted != "latest":
        raise UsageError("--at and --snapshot exclude each other", hint="leave one of them out")
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        target = target.absolute()
        _check_target(target, exists_is_fine=overwrite or plan_only)
        repository = host.open_reader(place, Keys(identity_file, passphrase_file), need_identity=True)
        header = choose_snapshot(repository, of_policy or place.policy_name, wanted, show.event, at)
        plan = plan_restore(repository, header, target, host.clock.now())
        show.result("plan", _plan_data(plan), lambda: _plan_text(plan, overwrite=overwrite))
        if plan.replaces and place.loaded and target.resolve() == place.loaded.policy.source.path.resolve():
            show.event(Warned("target-is-source", f"{target} is the database of the policy itself", STOP_FIRST))
        if plan_only:
            return
        result = run_restore(
            plan,
            repository,
            place.spec,
            host.target(header.engine),
            jobs=jobs or (place.loaded.policy.limits.jobs if place.loaded else 2),
            overwrite=overwrite,
            clock=host.clock,
            emit=show.event,
        )
        data = {
            "target": str(plan.target),
            "seconds": round(result.seconds, 3),
            "bytes": result.raw,
            "frames": result.frames,
        }

        def text() -> None:
            chunks = plural(result.frames, "chunk")
            click.echo(f"Restored to {plan.target} in {duration(result.seconds)}; {chunks} verified")
            click.echo(f"It belongs to {_owner(plan.target)}; see that the CRM may use it")

        show.result("restored", data, text)


def _check_target(target: Path, *, exists_is_fine: bool) -> None:
    """Refuse early what the restore would refuse after it has asked for keys and read the snapshot."""
    from crmbackup.core.errors import LocalError, TargetExists

    if target.is_dir():
        raise TargetExists(f"{target} is a directory", hint=f"name the file to make, such as {target / 'restored.db'}")
    if target.exists() and not exists_is_fine:
        raise TargetExists(f"{target} exists already", hint="restore elsewhere, or add --overwrite to replace it")
    if not target.parent.is_dir():
        raise LocalError(f"the directory {target.parent} does not exist", hint="create it, or restore elsewhere")


def _owner(path: Path) -> str:
    found = path.stat()
    try:
        name = path.owner()
    except KeyError:
        name = f"user {found.st_uid}"
    return f"{name} with mode {found.st_mode & 0o777:04o}"


def _plan_data(plan: RestorePlan) -> dict[str, object]:
    return {
        "snapshot_id": plan.header.snapshot_id,
        "policy": plan.header.policy,
        "captured": plan.captured,
        "age_seconds": round(plan.age, 3),
        "target": str(plan.target),
        "replaces": plan.replaces,
        "size": plan.header.source_size,
        "fetch_size": plan.fetch_size,
        "tables": [{"name": t.name, "kind": t.kind, "rows": t.rows} for t in plan.tables],
        "not_covered": plan.body.not_covered,
    }


def _plan_text(plan: RestorePlan, *, overwrite: bool) -> None:
    header = plan.header
    there = "  (exists, is REPLACED)" if overwrite else "  (exists, would need --overwrite)"
    click.echo(f"Restore {header.kind} snapshot {header.snapshot_id} of {header.policy}")
    click.echo(f"  moment  {when(header.captured)}, {duration(plan.age)} ago, from host {printable(header.host)}")
    click.echo(f"  size    {size(header.source_size)}, {size(plan.fetch_size)} to fetch")
    click.echo(f"  to      {plan.target}" + (there if plan.replaces else ""))
    shown = [t for t in plan.tables if t.kind != "shadow"]
    if shown:
        click.echo()
        table([("Table", False), ("Rows", True)], [[t.name, count(t.rows)] for t in shown])
    click.echo()
    for name, reason in plan.body.not_covered:
        click.echo(printable(f"  NOT COVERED  {name}: {reason}"))

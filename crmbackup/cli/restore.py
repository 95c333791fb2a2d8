"""crmbackup restore."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.failures import explain
from crmbackup.cli.options import key_options, moment, of_option, output_options, place_options, snapshot_name
from crmbackup.cli.render import count, duration, make_show, plural, printable, size, table, when

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Wiring
    from crmbackup.operations.restore import RestorePlan

STOP_FIRST = "stop the CRM before this file is replaced: a program that has it open would go on with the old one"


@click.command("restore")
@place_options
@click.option(
    "--to", "to", required=True, metavar="TARGET", help="The database file to make, or the URL of a database."
)
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
@click.option("--overwrite", is_flag=True, help="Replace the target file if it exists.")
@click.option("--create", is_flag=True, help="Make the database first (servers).")
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="SCHEMA.TABLE",
    help="Bring back only this table and what it needs (servers). May be given several times.",
)
@click.option("--schema-only", is_flag=True, help="Bring back definitions without rows (servers).")
@click.option("--data-only", is_flag=True, help="Bring back rows into empty tables that exist (servers).")
@click.option(
    "--roles",
    type=click.Choice(["restore", "create", "ignore"]),
    default="restore",
    show_default=True,
    help="Give objects to their owners, make missing owners first, or leave all to the user who restores (servers).",
)
@click.option(
    "--foreign-keys",
    type=click.Choice(["check", "not-valid"]),
    default="check",
    show_default=True,
    help="Where rows break a foreign key: end there, or bring all back and make the key for new rows only (servers).",
)
@click.option("--jobs", type=click.IntRange(1, 64), help="How many packs at a time. Default: the policy's, or 2.")
@key_options
@output_options
def command(
    policy: str | None,
    address: str | None,
    to: str,
    wanted: str,
    at: datetime | None,
    of_policy: str | None,
    plan_only: bool,
    overwrite: bool,
    create: bool,
    tables: tuple[str, ...],
    schema_only: bool,
    data_only: bool,
    roles: str,
    foreign_keys: str,
    jobs: int | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Bring a database back as the file or into the empty database --to.

    The plan is shown first. The target appears only when everything was verified, and never half.
    """
    from crmbackup.cli.engines import is_server
    from crmbackup.cli.lookup import choose_snapshot, meant_engine
    from crmbackup.cli.operation import operation
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.errors import UsageError
    from crmbackup.core.events import Warned
    from crmbackup.engines.base import RestoreOptions
    from crmbackup.operations.dates import warn_of_future
    from crmbackup.operations.restore import plan_restore, run_restore
    from crmbackup.storage.address import LocalAddress

    if at is not None and wanted != "latest":
        raise UsageError("--at and --snapshot exclude each other", hint="leave one of them out")
    if schema_only and data_only:
        raise UsageError("--schema-only and --data-only exclude each other", hint="leave one of them out")
    options = RestoreOptions(
        overwrite=overwrite or (plan_only and not is_server(to)),
        create=create,
        tables=tables,
        content="schema" if schema_only else "data" if data_only else "all",
        roles=roles,
        foreign_keys=foreign_keys,
    )
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        # What is wrong with the target is better said before keys are asked for and the snapshot is read.
        if is_server(to):
            # A server of another product would be asked first, and its answer be no help.
            with closing(place.spec.open(read_only=True)) as storage:
                known = host.opened(storage, None, host.files.pin(place.text))
                engine = meant_engine(known, of_policy or place.policy_name, wanted, host.clock.now(), at)
            if engine:
                host.engines.require_engine(engine, to)
        target = host.engines.target(to, options, place.loaded)
        if not is_server(to) and isinstance(place.address, LocalAddress):
            _refuse_repository(Path(target.name), place.address.path)
        replaces = target.check()
        repository = host.open_reader(place, Keys(identity_file, passphrase_file), need_identity=True)
        now = host.clock.now()
        header = choose_snapshot(repository, of_policy or place.policy_name, wanted, show.event, now, at)
        host.engines.require_engine(header.engine, to)
        plan = plan_restore(repository, header, target, now, replaces=replaces)
        show.result(
            "plan", _plan_data(plan), lambda: _plan_text(plan, _replaced(overwrite=overwrite, server=is_server(to)))
        )
        warn_of_future(header, now, show.event)
        if replaces and place.loaded and place.loaded.policy.source.names(to):
            show.event(Warned("target-is-source", f"{target.name} is the database of the policy itself", STOP_FIRST))
        if plan_only:
            return
        with operation(host, place.loaded, "restore", show.event) as run:
            with audited(host, plan, place.text):
                result = run_restore(
                    plan,
                    repository,
                    place.spec,
                    jobs=jobs or (place.loaded.policy.limits.jobs if place.loaded else 2),
                    clock=host.clock,
                    emit=run.emit,
                )
            run.done(snapshot_id=header.snapshot_id)
        data = {
            "target": plan.target.name,
            "seconds": round(result.seconds, 3),
            "bytes": result.raw,
            "frames": result.frames,
        }

        def text() -> None:
            chunks = plural(result.frames, "chunk")
            click.echo(f"Restored to {plan.target.name} in {duration(result.seconds)}; {chunks} verified")
            if header.engine == "sqlite":
                click.echo(f"It belongs to {_owner(Path(plan.target.name))}; see that the CRM may use it")

        show.result("restored", data, text)


@contextmanager
def audited(host: Wiring, plan: RestorePlan, place: str) -> Iterator[None]:
    """A restore in the audit log: before it begins, so that one that is killed is there too, and how it ended."""
    header = plan.header
    what = {"snapshot": header.snapshot_id, "repository": place, "target": plan.target.name, "replaces": plan.replaces}
    host.auditor.record("restore", header.policy, what)
    try:
        yield
    except Exception as error:
        host.auditor.record("restore-ended", header.policy, {**what, "outcome": explain(error).code})
        raise
    host.auditor.record("restore-ended", header.policy, {**what, "outcome": "done"})


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
        "target": plan.target.name,
        "replaces": plan.replaces,
        "size": plan.header.source_size,
        "fetch_size": plan.fetch_size,
        "tables": [{"name": t.name, "kind": t.kind, "rows": t.rows} for t in plan.tables],
        "not_covered": plan.body.not_covered,
        "notes": plan.notes,
    }


def _refuse_repository(target: Path, repository: Path) -> None:
    """With --overwrite a restore could replace the very pack that it reads. Raises UsageError."""
    from crmbackup.core.errors import UsageError

    if target.resolve().is_relative_to(repository.resolve()):
        raise UsageError(
            f"{target} lies within the repository", hint="restore elsewhere: it holds backups and nothing else"
        )


def _replaced(*, overwrite: bool, server: bool) -> str:
    """What the plan says of a target that exists: of a server's, only what a killed restore left is ever removed."""
    if server:
        return "  (what an unfinished restore left there is removed)"
    return "  (exists, is REPLACED)" if overwrite else "  (exists, would need --overwrite)"


def _plan_text(plan: RestorePlan, replaced: str) -> None:
    header = plan.header
    click.echo(f"Restore {header.kind} snapshot {header.snapshot_id} of {header.policy}")
    age = f"{duration(plan.age)} ago" if plan.age >= 0 else f"{duration(-plan.age)} in the future"
    click.echo(f"  moment  {when(header.captured)}, {age}, from host {printable(header.host)}")
    click.echo(f"  size    {size(header.source_size)}, {size(plan.fetch_size)} to fetch")
    click.echo(f"  to      {plan.target.name}" + (replaced if plan.replaces else ""))
    shown = [t for t in plan.tables if t.kind != "shadow"]
    if shown:
        click.echo()
        table([("Table", False), ("Rows", True)], [[t.name, count(t.rows)] for t in shown])
    click.echo()
    for note in plan.notes:
        click.echo(printable(f"  {note}"))
    for name, reason in plan.body.not_covered:
        click.echo(printable(f"  NOT COVERED  {name}: {reason}"))

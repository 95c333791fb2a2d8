"""crmbackup backup."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import output_options, policy_argument
from crmbackup.cli.render import Show, duration, make_show, plural, printable, rows_of, size, when

if TYPE_CHECKING:
    from crmbackup.cli.operation import Operation
    from crmbackup.cli.wiring import Wiring
    from crmbackup.core.events import Emit
    from crmbackup.operations.backup import BackupResult
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.repository.repository import Repository

#: Warnings of operations.backup that say already why there is a full snapshot.
PARENT_TROUBLE = {"parent-gone", "packs-gone", "packs-damaged"}


@click.command("backup")
@policy_argument
@click.option("--full", is_flag=True, help="Read everything and share nothing with older snapshots.")
@click.option("--incremental", is_flag=True, help="Ship only what changed since the last snapshot.")
@click.option("--allow-shrink", is_flag=True, help="Accept that the source lost more than source.max_shrink.")
@output_options
def command(policy: str, full: bool, incremental: bool, allow_shrink: bool, as_json: bool, verbose: bool) -> None:
    """Take a snapshot of the policy's database.

    Without --full or --incremental the policy's schedule and history decide; the first snapshot is a full one.
    Prints nothing when all is well and nobody watches, as under cron.
    """
    from crmbackup.cli.policies import refuse_namesake
    from crmbackup.cli.wiring import wiring

    if full and incremental:
        raise click.UsageError("--full and --incremental exclude each other.")
    kind = "full" if full else "incremental" if incremental else None
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        loaded = host.load(policy)
        refuse_namesake(host.cwd, loaded)
        backup(host, loaded, kind, allow_shrink=allow_shrink, show=show)


def backup(host: Wiring, loaded: LoadedPolicy, kind: str | None, *, allow_shrink: bool = False, show: Show) -> None:
    """Take a snapshot, show it and tell of it. kind: "full" or "incremental"; None lets schedule and history decide."""
    from crmbackup.cli.operation import operation

    with operation(host, loaded, "backup", show.event) as run:
        result = _run(host, loaded, kind, allow_shrink=allow_shrink, run=run)
        header = result.header
        if result.image.tables:
            run.table_rows = {each.name: each.rows for each in result.image.tables if each.rows is not None}
        rows = f", {rows_of(result.rows)}" if result.image.tables else ""
        run.done(
            snapshot_id=header.snapshot_id,
            details={
                "Snapshot": f"{header.snapshot_id}, {header.kind}, of {when(header.captured)}",
                "Source": f"{size(header.source_size)}{rows}",
                "Added": size(result.added),
            },
            facts={
                "captured": header.captured.timestamp(),
                "snapshot_bytes": header.source_size,
                "added_bytes": result.added,
                "snapshots": result.snapshots,
                "oldest": result.oldest.timestamp(),
            },
        )
        show.result("snapshot", _data(result), lambda: _text(result), quiet=True)


def _run(host: Wiring, loaded: LoadedPolicy, kind: str | None, *, allow_shrink: bool, run: Operation) -> BackupResult:
    from crmbackup.cli import history
    from crmbackup.core.errors import CrmBackupError
    from crmbackup.core.events import Event, Notice, Warned
    from crmbackup.operations.backup import BackupJob, run_backup
    from crmbackup.operations.state import PolicyState
    from crmbackup.policy.schedule import kind_due

    policy = loaded.policy
    started = host.clock.now()
    repository = None
    warned = set()

    def watch(event: Event) -> None:
        if isinstance(event, Warned):
            warned.add(event.code)
        run.emit(event)

    try:
        place = host.probed(host.policy_place(loaded))
        repository = host.open_writer(place)
        state = PolicyState(host.paths.state, repository.document.repository_id, policy.name)
        with state.locked():
            if kind is None:
                fulls = [h.started for h in repository.snapshots(policy.name).headers if h.kind == "full"]
                kind, why = kind_due(policy.schedule, fulls, started)
                run.emit(Notice(f"{kind}: {why}"))
            result = run_backup(
                BackupJob(
                    policy=policy.name,
                    engine=policy.source.type,
                    make_source=lambda key: host.engines.source(loaded, key),
                    repository=repository,
                    storage=place.spec,
                    state=state,
                    kind=kind,
                    jobs=policy.limits.jobs,
                    level=policy.limits.compression_level,
                    max_shrink=None if allow_shrink else policy.source.max_shrink,
                    host=host.host,
                    tool=host.tool,
                    clock=host.clock,
                    emit=watch,
                    damaged=_known_damage(host, repository, policy.name, run.emit),
                )
            )
    except CrmBackupError as error:
        history.record_failure(host, loaded, repository, "backup", kind, started, error, run.emit)
        raise
    finally:
        if repository:
            repository.storage.close()
    if kind == "incremental" and result.why_full and not warned & PARENT_TROUBLE:
        run.emit(Warned("full-instead", f"a full snapshot was taken, not an incremental one: {result.why_full}"))
    history.record_backup(host, loaded, result, run.emit)
    return result


def _known_damage(host: Wiring, repository: Repository, policy: str, emit: Emit) -> frozenset[str]:
    """Names of packs that checks on this host found damaged. No note of a check may keep a backup from being taken."""
    from crmbackup.core.errors import LocalError
    from crmbackup.core.events import Warned
    from crmbackup.operations.checked import damaged_packs

    try:
        return damaged_packs(host.paths.state, repository.document.repository_id, policy)
    except LocalError as problem:
        emit(Warned(problem.code, f"what checks found damaged is not known: {problem}", problem.hint))
        return frozenset()


def _data(result: BackupResult) -> dict[str, object]:
    header = result.header
    return {
        "snapshot_id": header.snapshot_id,
        "policy": header.policy,
        "kind": header.kind,
        "parent": header.parent,
        "captured": header.captured,
        "source_size": header.source_size,
        "read": result.read,
        "added": result.added,
        "rows": result.rows,
        "tables": len(result.image.tables),
        "not_covered": [list(entry) for entry in result.image.not_covered],
        "seconds": round(result.seconds, 3),
        "why_full": result.why_full,
    }


def _text(result: BackupResult) -> None:
    header = result.header
    reason = f" ({result.why_full})" if result.why_full else ""
    click.echo(f"{header.kind.capitalize()} snapshot {header.snapshot_id}{reason}")
    click.echo(f"  moment   {when(header.captured)}")
    tables = f", {plural(len(result.image.tables), 'table')}, {rows_of(result.rows)}" if result.image.tables else ""
    click.echo(f"  source   {size(header.source_size)}{tables}")
    click.echo(f"  shipped  {size(result.read)} as {size(result.added)} in {duration(result.seconds)}")
    for name, reason in result.image.not_covered:
        click.echo(printable(f"  NOT COVERED  {name}: {reason}"))

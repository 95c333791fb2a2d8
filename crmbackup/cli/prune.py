"""crmbackup prune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from crmbackup.cli.confirm import confirm
from crmbackup.cli.options import deleting_options, output_options, place_options, share
from crmbackup.cli.render import Show, make_show, plural, size, when

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Place, Wiring
    from crmbackup.operations.prune import Amount, PrunePlan, PruneRules
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.repository.repository import Repository


@click.command("prune")
@place_options
@deleting_options
@click.option(
    "--max-delete",
    type=share,
    metavar="SHARE",
    help="How much of all stored bytes this run may mark or delete, such as 80%. Default: the policy's, or 50%.",
)
@click.option(
    "--disregard",
    multiple=True,
    metavar="KEY",
    help="This manifest cannot be read and is lost for good: let go of what only it needs. May be given again.",
)
@output_options
def command(
    policy: str | None,
    address: str | None,
    plan_only: bool,
    yes: bool,
    max_delete: float | None,
    disregard: tuple[str, ...],
    as_json: bool,
    verbose: bool,
) -> None:
    """Delete packs that no snapshot needs any more. Needs no key.

    Looks at the whole repository, snapshots of other policies and hosts included; they may go on with their backups
    meanwhile. A pack is first marked, and deleted by a later run when the policy's prune.grace is over, so run it
    regularly. Marking alone is never asked about.
    """
    from crmbackup.cli.wiring import wiring

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        loaded = host.load(policy) if policy and not address else None
        where = None if loaded else host.place(policy, address)
        asked = Asked(plan_only, yes, as_json, max_delete, disregard)
        prune(host, loaded, where, asked, show)


@dataclass(frozen=True)
class Asked:
    """What the command line asks for. max_delete: share (0..1), None for the policy's."""

    plan_only: bool = False
    yes: bool = False
    as_json: bool = False
    max_delete: float | None = None
    disregard: tuple[str, ...] = ()


def prune(host: Wiring, loaded: LoadedPolicy | None, where: Place | None, asked: Asked, show: Show) -> None:
    """Show what goes, ask unless told not to, delete it and tell of it. where: the repository, if not the policy's."""
    from crmbackup.cli.operation import operation
    from crmbackup.operations.prune import plan_prune, run_prune

    if asked.plan_only:
        repository, rules = _opened(host, loaded, where, asked)
        plan = plan_prune(repository, rules, host.clock, show.event, ask_storage=False)
        show.result("prune-plan", _data(plan), lambda: _text(plan), quiet=False)
        return
    with operation(host, loaded, "prune", show.event) as run:
        repository, rules = _opened(host, loaded, where, asked)
        plan = plan_prune(repository, rules, host.clock, run.emit, ask_storage=True)
        show.result("prune-plan", _data(plan), lambda: _text(plan), quiet=asked.yes)
        if plan.delete:
            confirm(f"Delete {_amount(plan.deletes)}?", yes=asked.yes, as_json=asked.as_json)
            what = {"packs": plan.deletes.packs, "bytes": plan.deletes.size}
            host.auditor.record("prune", loaded.policy.name if loaded else None, what, required=True)
        deleted = run_prune(repository, plan, host.clock, run.emit) if plan.changes else plan.deletes
        run.done(details={"Deleted": _amount(deleted), "Marked": _amount(plan.condemns)})
        if plan.changes:
            _show_done(show, plan, deleted)


def _opened(
    host: Wiring, loaded: LoadedPolicy | None, where: Place | None, asked: Asked
) -> tuple[Repository, PruneRules]:
    from crmbackup.cli.wiring import Keys
    from crmbackup.core.errors import UsageError
    from crmbackup.operations.prune import PruneRules
    from crmbackup.policy.model import Prune

    place = host.policy_place(loaded) if loaded else where
    assert place is not None
    settings = place.loaded.policy.prune if place.loaded else Prune()
    repository = host.open_keeper(place, Keys(), read_only=asked.plan_only, need_trust=False)
    unknown = set(asked.disregard) - {key for key, _ in repository.manifest_keys(None)} if asked.disregard else set()
    if unknown:
        raise UsageError(f"there is no manifest {min(unknown)}", hint="give the key as the error named it")
    share_of_all = settings.max_delete if asked.max_delete is None else asked.max_delete
    return repository, PruneRules(settings.grace, share_of_all, asked.disregard)


def _show_done(show: Show, plan: PrunePlan, deleted: Amount) -> None:
    data = {
        "deleted_packs": deleted.packs,
        "deleted_bytes": deleted.size,
        "condemned_packs": plan.condemns.packs,
        "condemned_bytes": plan.condemns.size,
    }

    def text() -> None:
        click.echo(f"{_amount(deleted)} deleted, {_amount(plan.condemns)} marked")

    show.result("pruned", data, text, quiet=True)


def _amount(found: Amount) -> str:
    return f"{plural(found.packs, 'pack')} ({size(found.size)})" if found.packs else "no pack"


def _data(plan: PrunePlan) -> dict[str, object]:
    from crmbackup.storage.base import FOREVER

    return {
        "snapshots": plan.snapshots,
        "packs": plan.stored.packs,
        "bytes": plan.stored.size,
        "delete_packs": plan.deletes.packs,
        "delete_bytes": plan.deletes.size,
        "condemn_packs": plan.condemns.packs,
        "condemn_bytes": plan.condemns.size,
        "waiting_packs": plan.waiting.packs,
        "waiting_bytes": plan.waiting.size,
        "next_ripe": plan.next_ripe,
        "locked_packs": plan.locked.packs,
        "locked_bytes": plan.locked.size,
        "unlocked": None if plan.unlocked == FOREVER else plan.unlocked,
        "young_packs": plan.young.packs,
        "young_bytes": plan.young.size,
        "held_packs": plan.held,
    }


def _text(plan: PrunePlan) -> None:
    from crmbackup.policy.units import format_duration
    from crmbackup.storage.base import FOREVER

    grace = format_duration(plan.rules.grace)
    lines = [
        ("stored", f"{_amount(plan.stored)} for {plural(plan.snapshots, 'snapshot')}"),
        ("to delete", _amount(plan.deletes) + (f", marked {grace} ago or earlier" if plan.delete else "")),
        ("to mark", _amount(plan.condemns) + (f", unneeded and older than {grace}" if plan.condemn else "")),
    ]
    if plan.next_ripe:
        lines.append(("marked", f"{_amount(plan.waiting)}, the first can go {when(plan.next_ripe)[:16]} UTC"))
    if plan.unlocked:
        until = "as long as somebody holds them" if plan.unlocked == FOREVER else f"{when(plan.unlocked)[:16]} UTC"
        lines.append(("locked", f"{_amount(plan.locked)} that the storage keeps, the first until {until}"))
    if plan.young.packs:
        lines.append(("too young", f"{_amount(plan.young)}: of a run at work, or of one that was interrupted"))
    if plan.held:
        lines.append(("kept", f"{plural(plan.held, 'marked pack')} that a snapshot needs"))
    for name, value in lines:
        click.echo(f"{name:<10} {value}")

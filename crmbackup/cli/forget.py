"""crmbackup forget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.confirm import confirm
from crmbackup.cli.options import deleting_options, key_options, output_options, policy_argument
from crmbackup.cli.render import Show, make_show, plural, printable, size, table, when

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Keys, Wiring
    from crmbackup.operations.forget import ForgetPlan, ForgetRules, Verdict
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.policy.model import Policy
    from crmbackup.repository.manifest import ManifestHeader
    from crmbackup.repository.repository import Repository


@click.command("forget")
@policy_argument
@deleting_options
@click.option(
    "--damaged",
    is_flag=True,
    help="Also remove snapshots whose packs are missing or damaged, if enough whole ones are there.",
)
@click.option(
    "--future",
    is_flag=True,
    help="Also remove snapshots that are dated in the future, if enough others are there. Look at the clock first.",
)
@key_options
@output_options
def command(
    policy: str,
    plan_only: bool,
    yes: bool,
    damaged: bool,
    future: bool,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Remove snapshots that the policy's retention does not keep.

    Shows every snapshot with what becomes of it and why, and asks. Space comes back later, by `crmbackup prune`. The
    newest snapshot, the newest full one, the newest that passed a drill and pinned ones always stay.
    """
    from crmbackup.cli.policies import refuse_namesake
    from crmbackup.cli.wiring import Keys, wiring

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        keys = Keys(identity_file, passphrase_file)
        loaded = host.load(policy)
        refuse_namesake(host.cwd, loaded)
        asked = Asked(yes=yes, plan_only=plan_only, damaged=damaged, future=future, as_json=as_json)
        forget(host, loaded, keys, asked, show)


@dataclass(frozen=True)
class Asked:
    """What the command line says. plan_only: change nothing and tell nobody."""

    yes: bool
    plan_only: bool = False
    damaged: bool = False
    future: bool = False
    as_json: bool = False


def forget(host: Wiring, loaded: LoadedPolicy, keys: Keys, asked: Asked, show: Show) -> None:
    """Show what goes, ask unless `yes`, remove it and tell of it."""
    from crmbackup.cli.operation import operation
    from crmbackup.operations.forget import both_clocks, plan_forget, run_forget

    settings = loaded.policy
    place = host.policy_place(loaded)
    if asked.plan_only:
        repository = host.open_keeper(place, keys, read_only=True)
        now = host.clock.now()
        plan = plan_forget(repository, _rules(host, repository, settings, asked, now), now, show.event)
        _show_plan(show, plan, as_json=asked.as_json, quiet=False)
        return
    with operation(host, loaded, "forget", show.event) as run:
        repository = host.open_keeper(place, keys, read_only=False)
        now, later = both_clocks(repository, host.clock, run.emit)
        plan = plan_forget(repository, _rules(host, repository, settings, asked, later), now, run.emit)
        _show_plan(show, plan, as_json=asked.as_json, quiet=asked.yes)
        removed: Sequence[ManifestHeader] = ()
        if plan.remove:
            confirm(
                f"Remove {plural(len(plan.remove), 'snapshot')} of {settings.name}?",
                yes=asked.yes,
                as_json=asked.as_json,
            )
            named = {"snapshots": [each.header.snapshot_id for each in plan.remove]}
            host.auditor.record("forget", settings.name, named, required=True)
            removed = run_forget(repository, plan, now, run.emit)
        run.done(details={"Removed": plural(len(removed), "snapshot"), "Kept": plural(len(plan.keep), "snapshot")})
        if not plan.remove:
            return
        data = {"policy": settings.name, "removed": [h.snapshot_id for h in removed], "kept": len(plan.keep)}

        def text() -> None:
            click.echo(f"{plural(len(removed), 'snapshot')} removed; `crmbackup prune` brings their space back")

        show.result("forgotten", data, text, quiet=True)


def _rules(host: Wiring, repository: Repository, policy: Policy, asked: Asked, later: datetime) -> ForgetRules:
    """later: the later of the clocks, so that one that is behind makes no snapshot one of the future."""
    from crmbackup.operations.checked import damaged_packs
    from crmbackup.operations.drills import AHEAD
    from crmbackup.operations.forget import ForgetRules

    zone = policy.schedule.timezone if policy.schedule else "UTC"
    damaged = damaged_packs(host.paths.state, repository.document.repository_id, policy.name)
    return ForgetRules(
        policy.name,
        policy.retention,
        zone,
        drop_flawed=asked.damaged,
        damaged=damaged,
        drop_after=later + AHEAD if asked.future else None,
    )


def _show_plan(show: Show, plan: ForgetPlan, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        for each in plan.verdicts:
            show.result("verdict", _data(each), lambda: None)
        return
    show.result("verdicts", {}, lambda: _text(plan), quiet=quiet)


def _data(verdict: Verdict) -> dict[str, object]:
    header = verdict.header
    return {
        "snapshot_id": header.snapshot_id,
        "policy": header.policy,
        "kind": header.kind,
        "captured": header.captured,
        "keep": verdict.decision.keep,
        "reasons": verdict.decision.reasons,
    }


def _text(plan: ForgetPlan) -> None:
    if not plan.verdicts:
        click.echo(f"there are no snapshots of {plan.policy}")
        return
    columns = [("Snapshot", False), ("Kind", False), ("Moment (UTC)", False), ("What", False), ("Why", False)]
    rows = [
        [
            each.header.snapshot_id[:8],
            "incr" if each.header.kind == "incremental" else each.header.kind,
            when(each.header.captured, zone=False)[:16],
            "keep" if each.decision.keep else "REMOVE",
            printable(", ".join(each.decision.reasons)),
        ]
        for each in plan.verdicts
    ]
    table(columns, rows, wrap_last=True)
    click.echo()
    if not plan.any_rule and not plan.remove:
        click.echo(f"{plan.policy} has no retention rules: everything is kept")
    elif plan.remove:
        freed = (
            f"nobody needs {plural(plan.unneeded_packs, 'pack')} ({size(plan.unneeded_bytes)}) any more"
            if plan.unneeded_packs
            else "all packs are still needed"
        )
        click.echo(f"{len(plan.keep)} stay, {len(plan.remove)} go; then {freed}")
    else:
        click.echo("nothing to remove")

"""crmbackup check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import key_options, output_options, part_or_next, place_options
from crmbackup.cli.render import Show, make_show, plural, printable, size

if TYPE_CHECKING:
    from crmbackup.cli.operation import Operation
    from crmbackup.cli.wiring import Keys, Place, Wiring
    from crmbackup.operations.check import CheckResult
    from crmbackup.operations.checked import CheckNotes
    from crmbackup.policy.loader import LoadedPolicy

#: Findings in a message; the command prints all.
FINDINGS_TOLD = 10


@click.command("check")
@place_options
@click.option(
    "--read-data",
    "chosen",
    type=part_or_next,
    is_flag=False,
    flag_value="1/1",
    metavar="[=n/t|next[/t]]",
    help="Read the packs too: all, the n-th of t parts, or the next one in turn (t: the policy's check.parts, or 28).",
)
@key_options
@output_options
def command(
    policy: str | None,
    address: str | None,
    chosen: tuple[int | None, int | None] | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Look whether the repository is whole.

    Without a key: signatures, presence and sizes, and with --read-data the BLAKE3 of every pack. With the identity
    also the sealed parts: every snapshot's tables, and with --read-data every chunk. What is damaged is named with the
    snapshots that need it and, with the identity, with the tables that lie in it; each further check reads it again
    until it is mended. Prints nothing when all is well and nobody watches, as under cron.
    """
    from crmbackup.cli.wiring import Keys, wiring

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        loaded = host.load(policy) if policy and not address else None
        where = None if loaded else host.place(policy, address)
        check(host, loaded, where, Keys(identity_file, passphrase_file), chosen, show)


def check(
    host: Wiring,
    loaded: LoadedPolicy | None,
    where: Place | None,
    keys: Keys,
    chosen: tuple[int | None, int | None] | None,
    show: Show,
) -> None:
    """Look, show it and tell of it. where: the repository, if it is not the policy's.

    Raises ObjectDamaged when something is not whole.
    """
    from crmbackup.cli.operation import operation
    from crmbackup.core.errors import ObjectDamaged
    from crmbackup.operations.check import run_check
    from crmbackup.operations.checked import CheckNotes, damaged_packs
    from crmbackup.policy.model import Check

    with operation(host, loaded, "check", show.event) as run:
        # Secrets that are missing are a failure to be told like any other.
        place = host.policy_place(loaded) if loaded else where
        assert place is not None
        repository = host.open_reader(place, keys, need_identity=False)
        jobs = place.loaded.policy.limits.jobs if place.loaded else 2
        scope = (host.paths.state, repository.document.repository_id, place.policy_name)
        notes = CheckNotes(*scope)
        part = _part(chosen, notes, (place.loaded.policy.check if place.loaded else Check()).parts)
        result = run_check(
            repository,
            place.spec,
            policy=place.policy_name,
            part=part,
            jobs=jobs,
            clock=host.clock,
            emit=run.emit,
            make_target=lambda name: host.engines.drill_engine(name, None),
            suspects=damaged_packs(*scope),
        )
        _note(notes, run, result, part, in_turn=chosen is not None and chosen[0] is None)
        if result.mended and place.policy_name:
            CheckNotes(*scope[:2], None).found_whole(result.mended)
        lines = [f"{plural(result.snapshots, 'snapshot')}, {plural(result.packs, 'pack')}"]
        lines += [finding.text for finding in result.findings[:FINDINGS_TOLD]]
        run.done(
            details={"Checked": "\n".join(lines)},
            facts={"verified": run.started.timestamp() if result.passed else None},
            failed=not result.passed,
        )
        data = {"passed": result.passed, "part": part, **asdict(result)}
        show.result("check", data, lambda: _text(result, part), quiet=result.passed)
        if not result.passed:
            raise ObjectDamaged(
                f"the repository is damaged: {plural(len(result.findings), 'finding')}",
                hint="bring the objects back from a copy. Where packs are damaged this host's next backup is a full one, "
                "which reuses nothing of them, and `crmbackup forget POLICY --damaged` lets go of snapshots that need them",
            )


def _note(
    notes: CheckNotes, run: Operation, result: CheckResult, part: tuple[int, int] | None, *, in_turn: bool
) -> None:
    """For `status` and `monitor`, and for the next turn. Raises LocalError when turns do not get on."""
    from crmbackup.core.errors import LocalError
    from crmbackup.core.events import Warned
    from crmbackup.operations.checked import Checked

    first = result.findings[0].text if result.findings else ""
    try:
        notes.note(Checked(run.started, part, len(result.findings), first, result.damaged), in_turn=in_turn)
    except LocalError as problem:
        if in_turn:
            raise
        run.emit(Warned(problem.code, f"this host cannot note what was checked: {problem}", problem.hint))


def _part(chosen: tuple[int | None, int | None] | None, notes: CheckNotes, parts: int) -> tuple[int, int] | None:
    """Which part is read: as asked for, or the one whose turn it is."""
    if chosen is None:
        return None
    number, total = chosen
    return notes.next_part(total or parts) if number is None else (number, total or 1)


def _text(result: CheckResult, part: tuple[int, int] | None) -> None:
    how = "with the identity" if result.with_key else "without a key"
    click.echo(f"{plural(result.snapshots, 'snapshot')} and {plural(result.packs, 'pack')} checked {how}")
    if result.packs_read:
        frames = f", {plural(result.frames, 'chunk')} decrypted" if result.with_key else ""
        turn = f", part {part[0]} of {part[1]}" if part and part[1] > 1 else ""
        click.echo(f"  {plural(result.packs_read, 'pack')} read ({size(result.bytes_read)}){frames}{turn}")
    if result.unreferenced:
        loose = plural(result.unreferenced, "pack")
        click.echo(f"  {loose} in no snapshot: left by interrupted runs, or written by a run at this moment")
    for finding in result.findings:
        needed = f" (needed by {', '.join(finding.snapshots)})" if finding.snapshots else ""
        click.echo(printable(f"  DAMAGED  {finding.text}{needed}"))
        if finding.tables is not None:
            click.echo(printable(f"           holds {', '.join(finding.tables) or 'nothing of the newest of them'}"))
    if result.passed:
        click.echo("Nothing is wrong")

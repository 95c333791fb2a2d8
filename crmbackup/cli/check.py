"""crmbackup check."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import key_options, output_options, part, place_options
from crmbackup.cli.render import make_show, plural, printable, size

if TYPE_CHECKING:
    from crmbackup.operations.check import CheckResult


@click.command("check")
@place_options
@click.option(
    "--read-data",
    "chosen",
    type=part,
    is_flag=False,
    flag_value="1/1",
    metavar="[=n/t]",
    help="Read the packs too: all, or the n-th of t parts.",
)
@key_options
@output_options
def command(
    policy: str | None,
    address: str | None,
    chosen: tuple[int, int] | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Look whether the repository is whole.

    Without a key: signatures, presence and sizes, and with --read-data the BLAKE3 of every pack. With the identity
    also the sealed parts: every snapshot's tables, and with --read-data every chunk. Prints nothing when all is well
    and nobody watches, as under cron.
    """
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.errors import ObjectDamaged
    from crmbackup.operations.check import run_check

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        repository = host.open_reader(place, Keys(identity_file, passphrase_file), need_identity=False)
        jobs = place.loaded.policy.limits.jobs if place.loaded else 2
        result = run_check(
            repository, place.spec, policy=place.policy_name, part=chosen, jobs=jobs, clock=host.clock, emit=show.event
        )
        show.result("check", {"passed": result.passed, **asdict(result)}, lambda: _text(result), quiet=result.passed)
        if not result.passed:
            raise ObjectDamaged(
                f"the repository is damaged: {plural(len(result.findings), 'finding')}",
                hint="take a full snapshot now (`crmbackup backup POLICY --full`); it reuses nothing of the old ones",
            )


def _text(result: CheckResult) -> None:
    how = "with the identity" if result.with_key else "without a key"
    click.echo(f"{plural(result.snapshots, 'snapshot')} and {plural(result.packs, 'pack')} checked {how}")
    if result.packs_read:
        frames = f", {plural(result.frames, 'chunk')} decrypted" if result.with_key else ""
        click.echo(f"  {plural(result.packs_read, 'pack')} read ({size(result.bytes_read)}){frames}")
    if result.unreferenced:
        loose = plural(result.unreferenced, "pack")
        click.echo(f"  {loose} in no snapshot: left by interrupted runs, or written by a run at this moment")
    for finding in result.findings:
        needed = f" (needed by {', '.join(finding.snapshots)})" if finding.snapshots else ""
        click.echo(printable(f"  DAMAGED  {finding.text}{needed}"))
    if result.passed:
        click.echo("Nothing is wrong")

"""crmbackup show."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import one_snapshot, policy_and_snapshot
from crmbackup.cli.render import count, make_show, plural, printable, rows_of, size, table, when

if TYPE_CHECKING:
    from crmbackup.operations.manifests import SnapshotBody
    from crmbackup.repository.manifest import ManifestHeader


@click.command("show")
@one_snapshot(required=False)
def command(
    names: tuple[str, ...],
    address: str | None,
    of_policy: str | None,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Show one snapshot: tables, rows, checksums, sizes, parent.

    SNAPSHOT is "latest", which is the default, or an id or its beginning. With --repository no POLICY is given.
    Names, counts and checksums are encrypted: they need the identity.
    """
    from crmbackup.cli.lookup import choose_snapshot
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.operations.forget import pin_text
    from crmbackup.operations.manifests import read_body
    from crmbackup.repository.records import find_pins

    policy, wanted = policy_and_snapshot(names, with_policy=address is None)
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        repository = host.open_reader(place, Keys(identity_file, passphrase_file), need_identity=True)
        header = choose_snapshot(repository, of_policy or place.policy_name, wanted, show.event, host.clock.now())
        body = read_body(repository.body(header), header.packs)
        pins = find_pins(repository, header.policy)
        pin, doubt = pins.valid.get(header.snapshot_id), pins.doubtful.get(header.snapshot_id)
        data = {
            **vars(header),
            "pin": vars(pin) if pin else None,
            "packs": len(header.packs),
            "stored_size": header.stored_size,
            "engine_version": body.engine_version,
            "position": body.position,
            "properties": body.properties,
            "schema": body.schema,
            "image_digest": body.digest,
            "tables": [{k: v for k, v in asdict(t).items() if k != "segments"} for t in body.tables],
            "not_covered": body.not_covered,
        }
        signer = repository.document.signer_name(bytes.fromhex(header.signer))
        show.result("snapshot", data, lambda: _text(header, body, signer, pin_text(pin) if pin else str(doubt or "")))


def _text(header: ManifestHeader, body: SnapshotBody, signer: str, pinned: str) -> None:
    click.echo(f"Snapshot {header.snapshot_id} of {header.policy}")
    facts = [
        ("kind", header.kind + (f", parent {header.parent}" if header.parent else "")),
        ("moment", when(header.captured)),
        ("source", f"{size(header.source_size)}, {body.engine_version}, {rows_of(body.rows)}"),
        (
            "stored",
            f"{size(header.stored_size)} in {plural(len(header.packs), 'pack')}, {size(header.added_size)} of it new",
        ),
        ("signed by", signer),
        ("image", body.digest),
        *([("kept", pinned)] if pinned else []),
    ]
    for name, value in facts:
        click.echo(printable(f"  {name:<10} {value}"))
    click.echo()
    columns = [("Table", False), ("Kind", False), ("Rows", True), ("Checksum", False)]
    table(columns, [[t.name, t.kind, count(t.rows), (t.checksum or "-")[:16]] for t in body.tables])
    click.echo()
    for t in body.tables:
        if t.reason:
            click.echo(printable(f"  {'NOT READABLE  ' if t.unreadable else ''}{t.name}: {t.reason}"))
    for name, reason in body.not_covered:
        click.echo(printable(f"  NOT COVERED  {name}: {reason}"))

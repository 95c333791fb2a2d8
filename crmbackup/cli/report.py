"""crmbackup report."""

from __future__ import annotations

from pathlib import Path

import click

from crmbackup.cli.options import EXISTING_FILE, output_options, place_options
from crmbackup.cli.render import make_show


@click.group("report")
def command() -> None:
    """Verify a drill report."""


@command.command("verify")
@click.argument("file", type=EXISTING_FILE)
@place_options
@output_options
def verify(file: Path, policy: str | None, address: str | None, as_json: bool, verbose: bool) -> None:
    """Verify that a drill report was not changed and that a host of the repository signed it.

    FILE is the JSON file; the page beside it is made from it. The signers are read from the repository.
    """
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import UsageError
    from crmbackup.core.files import local_error
    from crmbackup.reports.signing import read_document, signature_of, verify_report

    if file.suffix in (".html", ".htm"):
        raise UsageError("only the JSON file of a report is signed", hint=f"verify {file.with_suffix('.json')}")
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        repository = host.open_keyless(host.place(policy, address))
        try:
            document = read_document(file.read_bytes())
        except OSError as error:
            raise local_error(error, f"read {file}") from error
        trusted = {repository.document.owner, *(signer.public for signer in repository.document.signers)}
        report = verify_report(document, trusted)
        signature = signature_of(document)
        data = {
            "file": str(file),
            "drill_id": report.drill.id,
            "passed": report.passed,
            "sha256": signature.report_sha256,
        }

        def text() -> None:
            click.echo(f"{file} is genuine: drill {report.drill.id}, {'passed' if report.passed else 'FAILED'}")

        show.result("report", data, text)

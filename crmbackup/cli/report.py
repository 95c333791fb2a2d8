"""crmbackup report."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import EXISTING_FILE, output_options, place_options
from crmbackup.cli.render import make_show, printable, when

if TYPE_CHECKING:
    from crmbackup.reports.drill import DrillReport
    from crmbackup.repository.repository import Repository


@click.group("report")
def command() -> None:
    """Verify a drill report."""


@command.command("verify")
@click.argument("file", type=EXISTING_FILE)
@place_options
@output_options
def verify(file: Path, policy: str | None, address: str | None, as_json: bool, verbose: bool) -> None:
    """Verify that a drill report was not changed and that a host of the repository signed it.

    FILE is the JSON file; the page beside it is made from it. The signers are read from the repository. It must be a
    report of that repository and, with POLICY, of that policy; and the one that the drill noted there, if it did.
    """
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import UsageError
    from crmbackup.core.events import Warned
    from crmbackup.core.files import local_error
    from crmbackup.reports.signing import read_document, signature_of, verify_report

    if file.suffix in (".html", ".htm"):
        raise UsageError("only the JSON file of a report is signed", hint=f"verify {file.with_suffix('.json')}")
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        place = host.place(policy, address)
        repository = host.open_keyless(place)
        try:
            document = read_document(file.read_bytes())
        except OSError as error:
            raise local_error(error, f"read {file}") from error
        trusted = {repository.document.owner, *(signer.public for signer in repository.document.signers)}
        report = verify_report(document, trusted)
        _require_subject(report, repository.document.repository_id, place.policy_name)
        recorded = _recorded(report, repository, signature_of(document).report_sha256)
        if host.files.pin(place.text) is None:
            text = f"this host does not know the repository at {place.text}: whether its list of hosts is yours is not known"
            show.event(Warned("repository-unknown", text, "verify where the repository was made or joined"))
        signature = signature_of(document)
        signer = repository.document.signer_name(base64.b64decode(signature.public_key))
        if signature.public_key == base64.b64encode(repository.document.owner).decode("ascii"):
            signer = "the owner, by the identity"
        data = {
            "file": str(file),
            "drill_id": report.drill.id,
            "policy": report.drill.policy,
            "repository_id": report.source.repository_id,
            "snapshot_id": report.source.snapshot_id,
            "captured": report.source.captured_at,
            "started": report.started_at,
            "passed": report.passed,
            "verdicts": vars(report.verdicts),
            "signer": signer,
            "recorded": recorded,
            "sha256": signature.report_sha256,
        }
        show.result("report", data, lambda: _text(file, report, signer, recorded=recorded))


def _require_subject(report: DrillReport, repository_id: str, policy: str | None) -> None:
    """A report that is genuine proves nothing of another repository or policy: one host signs for all that it drills."""
    from crmbackup.core.errors import UntrustedSignature, UsageError

    if report.source.repository_id != repository_id:
        raise UntrustedSignature(
            "the drill report is of another repository",
            why=f"it is of {report.source.repository_id} at {report.source.repository}, this one is {repository_id}",
            hint="do not take it for a proof of this repository's backups",
        )
    if policy is not None and report.drill.policy != policy:
        raise UsageError(
            f"the drill report is of the policy {report.drill.policy}, not of {policy}",
            hint="give the policy that it is of; with --repository a report of any policy there is verified",
        )


def _recorded(report: DrillReport, repository: Repository, sha256: str) -> bool:
    """Whether the repository holds the record that the drill left there. Raises UntrustedSignature where it is of another
    report: whoever holds the host's key can sign a changed one.
    """
    from crmbackup.core.errors import UntrustedSignature
    from crmbackup.repository.records import drill_key, read_drill

    record = read_drill(repository, drill_key(report.drill.policy, report.started_at, report.drill.id))
    if record and record.report_sha256 != sha256:
        raise UntrustedSignature(
            "the drill report is not the one that the drill wrote",
            why=f"the repository has noted a report with the SHA-256 {record.report_sha256}",
            hint="treat the report as forged: somebody with a key of the repository signed another one",
        )
    return record is not None


def _text(file: Path, report: DrillReport, signer: str, *, recorded: bool) -> None:
    verdicts, source = report.verdicts, report.source
    passed = "passed" if report.passed else "FAILED"
    click.echo(f"{file} is genuine: drill {report.drill.id} of {report.drill.policy}, {passed}")
    click.echo(printable(f"  began     {when(report.started_at)} on {report.target.host if report.target else '-'}"))
    moment = f" of {when(source.captured_at)}" if source.captured_at else ""
    click.echo(f"  snapshot  {source.snapshot_id or '-'}{moment}")
    told = f"restore {verdicts.restore}, validation {verdicts.validation}, objectives {verdicts.objectives}"
    click.echo(f"  verdicts  {told}")
    click.echo(printable(f"  signed    by {signer}"))
    click.echo(
        f"  recorded  {'in the repository, as it is' if recorded else 'nowhere: the repository has no record of it'}"
    )

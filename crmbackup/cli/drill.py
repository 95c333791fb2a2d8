"""crmbackup drill."""

from __future__ import annotations

import random
import shlex
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import drill_snapshot, key_options, output_options, policy_argument
from crmbackup.cli.render import Show, count, duration, make_show, plural, printable, table

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Keys, Wiring
    from crmbackup.core.errors import VerificationFailed
    from crmbackup.core.events import Emit
    from crmbackup.operations.drill import DrillResult
    from crmbackup.policy.loader import LoadedPolicy

#: Of what a check found, for the terminal.
DETAIL_LENGTH = 200


@click.command("drill")
@policy_argument
@click.option(
    "--snapshot",
    "wanted",
    type=drill_snapshot,
    metavar="ID",
    help="latest, random, or an id or its beginning. Default: the policy's drill.snapshot.",
)
@click.option("--random", "at_random", is_flag=True, help="The same as --snapshot random.")
@click.option("--operator", help="Who runs the drill, for the report. Default: the user's name.")
@click.option("--trigger", default="command line", show_default=True, help="What caused it, for the report.")
@key_options
@output_options
def command(
    policy: str,
    wanted: str | None,
    at_random: bool,
    operator: str | None,
    trigger: str,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Restore into an isolated place and prove, table by table, that it is the snapshot.

    Writes a signed JSON report and a page to read. Uses nothing but the repository and the identity. Prints nothing
    when all is well and nobody watches, as under cron.
    """
    from crmbackup.cli.policies import refuse_namesake
    from crmbackup.cli.wiring import Keys, wiring
    from crmbackup.core.errors import UsageError

    if at_random and wanted not in (None, "random"):
        raise UsageError("--random and --snapshot exclude each other", hint="leave one of them out")
    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        loaded = host.load(policy)
        refuse_namesake(host.cwd, loaded)
        drill(
            host,
            loaded,
            Keys(identity_file, passphrase_file),
            wanted="random" if at_random else wanted,
            operator=operator,
            trigger=trigger,
            show=show,
        )


def drill(
    host: Wiring,
    loaded: LoadedPolicy,
    keys: Keys,
    *,
    wanted: str | None = None,
    operator: str | None = None,
    trigger: str,
    show: Show,
) -> None:
    """Rehearse a restore, show it and tell of it. wanted: a snapshot, the policy's choice when None.

    Raises VerificationFailed, ObjectivesMissed, and what prevented the drill.
    """
    from crmbackup.cli import history
    from crmbackup.cli.operation import operation
    from crmbackup.core.errors import ObjectivesMissed

    with operation(host, loaded, "drill", show.event) as run:
        result = _run(host, loaded, keys, wanted, operator, trigger, run.emit)
        history.record_drill(host, loaded, result, run.emit)
        report, goals = result.report, result.report.objectives
        good = report.passed and report.verdicts.objectives != "missed"
        verdicts = (("restore", report.verdicts.restore), ("validation", report.verdicts.validation))
        run.done(
            snapshot_id=report.source.snapshot_id or "",
            details={
                "Drill": f"{report.drill.id} of snapshot {report.source.snapshot_id or '-'}",
                "Verdicts": ", ".join(f"{name} {verdict}" for name, verdict in verdicts)
                + f", objectives {report.verdicts.objectives} {_objectives(result)}".rstrip(),
                "Report": str(result.html_path),
            },
            facts={
                "drilled": report.started_at.timestamp() if report.passed else None,
                "drill_rto": goals.rto_actual_s,
                "drill_rpo": goals.rpo_actual_s,
            },
            failed=not good,
        )
        show.result("drill", _data(result), lambda: _text(result), quiet=good)
        if result.error:
            raise result.error
        if not report.passed:
            raise _failed(result)
        if report.verdicts.objectives == "missed":
            raise ObjectivesMissed(
                "the data is right, but an objective was missed",
                why=_objectives(result),
                hint=f"read {result.html_path}",
            )


def _run(
    host: Wiring,
    loaded: LoadedPolicy,
    keys: Keys,
    wanted: str | None,
    operator: str | None,
    trigger: str,
    emit: Emit,
) -> DrillResult:
    from crmbackup.operations.drill import DrillJob, run_drill

    settings, objectives = loaded.policy.drill, loaded.policy.objectives
    place = host.policy_place(loaded)

    return run_drill(
        DrillJob(
            policy=loaded.policy.name,
            open_repository=lambda: host.open_reader(place, keys, need_identity=True),
            storage=place.spec,
            make_target=lambda name: host.engines.drill_engine(name, loaded),
            wanted=wanted or settings.snapshot,
            window=settings.window,
            directory=settings.directory or Path(tempfile.gettempdir()),
            reports=settings.reports or host.paths.reports,
            assertions=settings.assertions,
            foreign_keys=settings.foreign_keys,
            rto=objectives.rto.total_seconds() if objectives.rto else None,
            rpo=objectives.rpo.total_seconds() if objectives.rpo else None,
            policy_sha256=loaded.sha256,
            operator=operator or host.operator,
            trigger=trigger,
            jobs=loaded.policy.limits.jobs,
            host=host.host,
            tool=host.tool,
            signer=host.author,
            verify_command=f"crmbackup report verify REPORT {shlex.quote(str(loaded.path))}",
            clock=host.clock,
            emit=emit,
            rng=random.SystemRandom(),
        )
    )


def _failed(result: DrillResult) -> VerificationFailed:
    from crmbackup.core.errors import VerificationFailed

    report = result.report
    failed = [check.name for check in report.checks if not check.ok]
    failed += [f'assertion "{each.name}"' for each in report.assertions if not each.ok]
    hint = f"read {result.html_path}"
    if "foreign_key_check" in failed:
        hint += "; `drill: {foreign_keys: report}` in the policy accepts rows without parents"
    differing = [table.name for table in report.tables if table.status not in ("match", "left-out")]
    if differing or (report.schema and not report.schema.ok):
        where = [*differing, *(["the schema"] if report.schema and not report.schema.ok else []), *failed]
        return VerificationFailed(
            "the restored database is not what the snapshot says", why=", ".join(where), hint=hint
        )
    return VerificationFailed(
        "the restored database is the snapshot, but is not right", why=", ".join(failed), hint=hint
    )


def _data(result: DrillResult) -> dict[str, object]:
    report = result.report
    return {
        "drill_id": report.drill.id,
        "snapshot_id": report.source.snapshot_id,
        "passed": report.passed,
        "verdicts": vars(report.verdicts),
        "objectives": vars(report.objectives),
        "tables": len(report.tables),
        "mismatches": [t.name for t in report.tables if t.status not in ("match", "left-out")],
        "left_out": [t.name for t in report.tables if t.status == "left-out"],
        "report": str(result.json_path),
        "page": str(result.html_path),
        "report_sha256": result.report_sha256,
    }


def _objectives(result: DrillResult) -> str:
    goals = result.report.objectives
    parts = []
    for name, actual, target in (
        ("RTO", goals.rto_actual_s, goals.rto_target_s),
        ("RPO", goals.rpo_actual_s, goals.rpo_target_s),
    ):
        if actual is not None:
            parts.append(
                f"{name} {duration(actual)}" + (f" (allowed {duration(target)})" if target is not None else "")
            )
    return ", ".join(parts)


def _text(result: DrillResult) -> None:
    report = result.report
    verdicts = report.verdicts
    click.echo(
        f"Drill {report.drill.id} of snapshot {report.source.snapshot_id or '-'}: "
        + ("PASSED" if report.passed else "FAILED")
    )
    click.echo(f"  restore     {verdicts.restore}")
    click.echo(f"  validation  {verdicts.validation.replace('-', ' ')}")
    click.echo(f"  objectives  {verdicts.objectives.replace('-', ' ')}  {_objectives(result)}")
    matching = [t for t in report.tables if t.status == "match"]
    rows = sum(t.actual_rows or 0 for t in matching if t.kind != "shadow")
    if report.tables:
        click.echo(f"  tables      {len(matching)} of {len(report.tables)} equal, {plural(rows, 'row')} compared")
    bad = [t for t in report.tables if t.status != "match"]
    if bad:
        columns = [("Table", False), ("Status", False), ("Expected", True), ("Found", True), ("", False)]
        table(columns, [[t.name, t.status, count(t.expected_rows), count(t.actual_rows), t.detail or ""] for t in bad])
    for check in report.checks:
        if not check.ok:
            detail = check.detail or ""
            rest = " ... (the report has it all)" if len(detail) > DETAIL_LENGTH else ""
            click.echo(printable(f"  FAILED  {check.name}: {detail[:DETAIL_LENGTH]}{rest}"))
    for assertion in report.assertions:
        if not assertion.ok:
            found = assertion.error or f"{assertion.actual} instead of {assertion.expected}"
            click.echo(printable(f"  FAILED  assertion {assertion.name}: {found}"))
    click.echo(f"  report      {result.json_path}")
    click.echo(f"  page        {result.html_path}")

"""What a drill's results come to, in sentences: for the top of the page, where an auditor looks first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from crmbackup.reports.drill import DrillReport
from crmbackup.reports.wording import counted, duration, visible

Tone = Literal["good", "bad", "warn", "none"]


@dataclass(frozen=True)
class Headline:
    """The whole drill in one sentence."""

    tone: Tone
    word: str
    text: str


@dataclass(frozen=True)
class VerdictCard:
    """One of the three verdicts."""

    question: str
    tone: Tone
    word: str
    text: str


def headline(report: DrillReport) -> Headline:
    """The drill in one sentence. Green needs everything: restored, equal, and no objective missed."""
    verdicts = report.verdicts
    but = _left_out(report)
    if verdicts.restore == "not-run":
        return Headline("bad", "Drill did not run", "Nothing was restored, so nothing is proved.")
    if verdicts.restore == "failed":
        return Headline("bad", "Drill failed", "The snapshot could not be restored.")
    if verdicts.validation == "not-run":
        return Headline("bad", "Nothing proved", "The snapshot was restored, but nothing was compared with it.")
    if verdicts.validation == "failed":
        return Headline(
            "bad", "Drill failed", "The snapshot was restored, but what came back is not what was backed up."
        )
    if verdicts.objectives == "missed":
        return Headline(
            "warn",
            "Data right, objectives missed",
            f"Every table that was compared is equal, but recovery was not good enough.{but}",
        )
    if verdicts.objectives == "met":
        return Headline("good", "Drill passed", f"The snapshot was restored, is proved equal, and was in time.{but}")
    text = "The snapshot was restored and is proved equal. Whether it was fast and recent enough was not judged."
    return Headline("good", "Drill passed", text + but)


def _left_out(report: DrillReport) -> str:
    """What is true of all tables but some says so."""
    count = sum(table.status == "left-out" for table in report.tables)
    return f" Left out and not proved: {counted(count, 'table')} of extensions that act by themselves." if count else ""


def verdict_cards(report: DrillReport) -> tuple[VerdictCard, ...]:
    """Restore, validation and objectives, in this order."""
    return (_restore(report), _validation(report), _objectives(report))


def _restore(report: DrillReport) -> VerdictCard:
    question = "Restore"
    if report.verdicts.restore == "passed":
        return VerdictCard(question, "good", "Passed", _reading(report))
    if report.verdicts.restore == "failed":
        text = f"It stopped with the error {visible(report.error.code)}." if report.error else "See the findings below."
        return VerdictCard(question, "bad", "Failed", text)
    return VerdictCard(question, "none", "Not run", "No restore was tried.")


def _reading(report: DrillReport) -> str:
    if report.repository is None:
        return "The snapshot came back."
    objects = counted(report.repository.objects_read, "object")
    frames = counted(report.repository.frames_verified, "frame")
    return f"{objects} read, {frames} verified."


def _validation(report: DrillReport) -> VerdictCard:
    question = "Validation"
    if report.verdicts.validation == "passed":
        equal = sum(table.status == "match" for table in report.tables)
        text = f"{counted(equal, 'table')}: every row count and checksum is as in the snapshot."
        return VerdictCard(question, "good", "Passed", text + _left_out(report))
    if report.verdicts.validation == "failed":
        return VerdictCard(question, "bad", "Failed", _failures(report))
    return VerdictCard(question, "none", "Not run", "Nothing was compared with the snapshot.")


def _failures(report: DrillReport) -> str:
    tables = sum(table.status not in ("match", "left-out") for table in report.tables)
    checks = sum(not check.ok for check in report.checks)
    assertions = sum(not assertion.ok for assertion in report.assertions)
    parts = []
    if tables:
        parts.append(f"{tables:,} of {counted(len(report.tables), 'table')}")
    if report.schema and not report.schema.ok:
        parts.append("the schema")
    if checks:
        parts.append(counted(checks, "check"))
    if assertions:
        parts.append(counted(assertions, "assertion"))
    return f"Not as expected: {', '.join(parts)}." if parts else "See the findings below."


def _objectives(report: DrillReport) -> VerdictCard:
    question = "Objectives"
    aims = report.objectives
    pairs = (("RTO", aims.rto_target_s, aims.rto_actual_s), ("RPO", aims.rpo_target_s, aims.rpo_actual_s))
    if report.verdicts.objectives == "not-set":
        return VerdictCard(question, "none", "Not set", "The policy sets no RTO and no RPO: nothing to judge by.")
    if report.verdicts.objectives == "not-run":
        return VerdictCard(question, "none", "Not judged", "What the policy asks for was not measured.")
    if report.verdicts.objectives == "missed":
        over = [
            f"{name} {duration(actual)}, allowed {duration(target)}"
            for name, target, actual in pairs
            if target is not None and actual is not None and actual > target
        ]
        return VerdictCard(question, "bad", "Missed", f"{'; '.join(over)}." if over else "See below.")
    named = " and ".join(name for name, target, _ in pairs if target is not None)
    return VerdictCard(question, "good", "Met", f"{named or 'All'} within what the policy allows.")

"""What receivers are told of a run, as frozen values and as text."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

Outcome = Literal["success", "warning", "failure"]
Kind = Literal["failure", "recovery", "warning", "drill", "success", "test"]

#: Of one text from outside, such as what a hook printed or a database answered.
TEXT_LENGTH = 2000
#: Healthchecks keeps 100 kB; a message that long is read by nobody.
BODY_LENGTH = 8000
HEADLINES = {
    "failure": "FAILED",
    "recovery": "works again",
    "warning": "done, with warnings",
    "success": "done",
}


@dataclass(frozen=True)
class RunReport:
    """One run that is over.

    policy, action: as in "crm", "backup". place: the repository's address. error: code, text and hint, empty where all
    went well. seconds: None when nobody saw its end. warnings: code and text of each. details: what else there is to say,
    label and text. All moments aware.
    """

    policy: str
    action: str
    run_id: str
    host: str
    place: str
    started: datetime
    seconds: float | None
    outcome: Outcome
    exit_code: int = 0
    error_code: str = ""
    error_text: str = ""
    error_hint: str = ""
    warnings: tuple[tuple[str, str], ...] = ()
    details: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Past:
    """What is known of earlier runs of the same action.

    good: the last one that went well. failures: how many failed in a row, a failed run at hand included; failing_since:
    the first of them.
    """

    good: datetime | None = None
    failing_since: datetime | None = None
    failures: int = 0


def title(report: RunReport, kind: Kind) -> str:
    """One line: what and whose, how it went, and why."""
    text = f"crmbackup {report.policy}: {report.action} "
    if kind == "drill":
        return text + (HEADLINES["failure"] if report.outcome == "failure" else "passed")
    reason = report.error_code if kind == "failure" else ", ".join(sorted({code for code, _ in report.warnings}))
    return text + HEADLINES[kind] + (f" ({reason})" if reason and kind in ("failure", "warning") else "")


def body(report: RunReport, past: Past, audit_head: str) -> str:
    """The text below it. audit_head: of the audit log, empty without one."""
    lines: list[tuple[str, str]] = []
    if report.error_text:
        lines.append(("Error", f"{report.error_code}: {report.error_text}"))
    if report.error_hint:
        lines.append(("What to do", report.error_hint))
    lines += [("Warning", f"{code}: {text}") for code, text in report.warnings]
    if report.outcome == "failure":
        lines.append(("Last good", _ago(past.good, report.started) if past.good else "none is known"))
    if past.failing_since and (report.outcome != "failure" or past.failures > 1):
        label = "Failing since" if report.outcome == "failure" else "Had failed since"
        runs = f"{past.failures} runs" if past.failures != 1 else "1 run"
        lines.append((label, f"{_ago(past.failing_since, report.started)}, {runs}"))
    lines += report.details
    lines += [
        ("Started", f"{report.started:%Y-%m-%d %H:%M:%S} UTC" + _took(report.seconds)),
        ("Host", report.host),
        ("Repository", report.place),
    ]
    if report.exit_code:
        lines.append(("Exit code", str(report.exit_code)))
    lines.append(("Run", report.run_id))
    if audit_head:
        lines.append(("Audit", audit_head))
    width = max(len(label) for label, _ in lines) + 2
    text = "\n".join(f"{label + ':':<{width}}{_indented(text, width)}" for label, text in lines)
    return text if len(text) <= BODY_LENGTH else text[: BODY_LENGTH - 4] + " ..."


def _indented(text: str, width: int) -> str:
    text = "".join(char if char.isprintable() or char == "\n" else ascii(char)[1:-1] for char in text.strip())
    if len(text) > TEXT_LENGTH:
        text = "... " + text[-TEXT_LENGTH:]
    return text.replace("\n", "\n" + " " * width)


def _took(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return ", took " + (f"{seconds:.1f} s" if seconds < 60 else str(timedelta(seconds=round(seconds))))


def _ago(moment: datetime, now: datetime) -> str:
    age = (now - moment).total_seconds()
    text = f"{moment:%Y-%m-%d %H:%M:%S} UTC"
    if age < 0:
        return text
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if age >= 2 * length:
            return f"{text}, {age // length:.0f} {unit} before"
    return text

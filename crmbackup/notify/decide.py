"""Who is told what: pure functions from a run and what was told before to messages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crmbackup.notify.ledger import ActionRecord
from crmbackup.notify.report import Kind, RunReport

#: Of the time of silence: what is repeated each night is told each night, also when one night's run began or ended a
#: little earlier than the last one's. Half an hour of a day.
SLACK = 1 / 48


@dataclass(frozen=True)
class Receiver:
    """Somebody who gets messages. key: tells it from others in the ledger, no secret. on: kinds that it wants."""

    key: str
    on: frozenset[str]


def record_run(record: ActionRecord, report: RunReport, ended: float) -> None:
    """Write a run into its action's record, all but what is told of it. ended: seconds since the epoch."""
    record.attempted = ended
    record.seconds = report.seconds
    record.exit_code = report.exit_code
    if report.outcome == "failure":
        record.failures += 1
        record.failing_since = record.failing_since or ended
    else:
        record.succeeded = ended
        record.failures = 0
        record.failing_since = None
    if report.outcome == "success":
        record.warned.clear()


def messages(
    record: ActionRecord, was_failing: bool, report: RunReport, receivers: Sequence[Receiver], now: float, repeat: float
) -> list[tuple[Receiver, Kind]]:
    """Who is to be told of a run, at most one message each. repeat: seconds, as `notify.repeat`."""
    found = []
    for receiver in receivers:
        kind = _kind(record, was_failing, report, receiver, now, repeat)
        if kind:
            found.append((receiver, kind))
    return found


def _kind(
    record: ActionRecord, was_failing: bool, report: RunReport, receiver: Receiver, now: float, repeat: float
) -> Kind | None:
    every_drill = report.action == "drill" and "drill" in receiver.on
    told = record.told.get(receiver.key)
    if report.outcome == "failure":
        new = told is None or told[1] != report.error_code or _over(told[0], now, repeat)
        if "failure" in receiver.on and new:
            return "failure"
        return "drill" if every_drill else None
    # Who was told of the failure hears of its end; also who does not want to hear of failures as such.
    if "recovery" in receiver.on and (told or (was_failing and "failure" not in receiver.on)):
        return "recovery"
    if report.outcome == "warning" and "warning" in receiver.on:
        warned = record.warned.get(receiver.key)
        if warned is None or warned[1] != _codes(report) or _over(warned[0], now, repeat):
            return "warning"
    if every_drill:
        return "drill"
    return "success" if "success" in receiver.on else None


def note_told(record: ActionRecord, report: RunReport, receiver: Receiver, kind: Kind, now: float) -> None:
    """Remember that a message arrived. One that did not arrive is sent again after the next run."""
    if kind == "failure":
        record.told[receiver.key] = [now, report.error_code]
    elif kind == "recovery":
        record.told.pop(receiver.key, None)
    if report.outcome == "warning" and kind in ("recovery", "warning"):
        record.warned[receiver.key] = [now, _codes(report)]


def forget_others(record: ActionRecord, report: RunReport, receivers: Sequence[Receiver]) -> None:
    """Drop what is known of receivers that are not there any more, or do not want to hear of a failure's end."""
    keys = {receiver.key for receiver in receivers}
    for notes in (record.told, record.warned):
        for key in notes.keys() - keys:
            del notes[key]
    if report.outcome != "failure":
        for receiver in receivers:
            if "recovery" not in receiver.on:
                record.told.pop(receiver.key, None)


def _over(moment: float, now: float, repeat: float) -> bool:
    """Whether the silence since then has been long enough; so it has when the clock was set back."""
    return not 0 <= now - moment < repeat * (1 - SLACK)


def _codes(report: RunReport) -> str:
    return " ".join(sorted({code for code, _ in report.warnings}))

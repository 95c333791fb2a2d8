"""A drill report as one page that needs nothing else: no script, no font, no picture from elsewhere.

Every text from the report is escaped, and characters that cannot be seen are spelled out. The page is a rendering for
people; the evidence is the signed JSON document, whose digest the page names.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from crmbackup.reports import wording
from crmbackup.reports.drill import DrillReport, PhaseTiming, TableResult
from crmbackup.reports.findings import Headline, VerdictCard, headline, verdict_cards
from crmbackup.reports.signing import Signature

#: Tables with findings come first, the worst first.
STATUS_ORDER = ("mismatch", "missing", "unreadable", "unexpected", "left-out", "match")
STATUS_WORDS = {
    "mismatch": "differs",
    "missing": "missing",
    "unreadable": "unreadable",
    "unexpected": "not in snapshot",
    "left-out": "left out",
    "match": "equal",
}
STATUS_TONES = {"match": "good", "left-out": "warn"}


@dataclass(frozen=True)
class ObjectiveBar:
    """One objective. Widths are percent of the track; None for what is not known. tone: good, bad or none."""

    name: str
    meaning: str
    target: float | None
    actual: float | None
    tone: str
    word: str
    actual_width: float | None
    target_mark: float | None


@dataclass(frozen=True)
class TimingBar:
    """One phase on the common time line, in percent of the whole."""

    timing: PhaseTiming
    left: float
    width: float


@dataclass(frozen=True)
class View:
    """What the template needs besides the report itself."""

    headline: Headline
    verdicts: tuple[VerdictCard, ...]
    objectives: tuple[ObjectiveBar, ...]
    tables: tuple[TableResult, ...]
    status_counts: tuple[tuple[str, int], ...]
    tables_equal: int
    rows_equal: int
    timings: tuple[TimingBar, ...]


def render_html(report: DrillReport, signature: Signature | None = None, verify_command: str | None = None) -> str:
    """The page, as text to be stored in UTF-8.

    Args:
        report: what the page tells.
        signature: of the signed document (`signing.signature_of`); without it the page says that it is not signed.
        verify_command: the command line that verifies the signed document, shown to the reader.
    """
    return _template().render(
        report=report,
        view=_view(report),
        signature=signature,
        verify_command=verify_command,
        status_words=STATUS_WORDS,
        status_tones=STATUS_TONES,
    )


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("crmbackup.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "duration": wording.duration,
        "size": wording.size,
        "number": wording.number,
        "difference": wording.difference,
        "moment": wording.moment,
        "visible": wording.visible,
        "counted": wording.counted,
    }
    return environment.get_template("drill.html.jinja")


def _view(report: DrillReport) -> View:
    aims = report.objectives
    equal = [table for table in report.tables if table.status == "match"]
    counts = ((status, sum(table.status == status for table in report.tables)) for status in STATUS_ORDER)
    return View(
        headline=headline(report),
        verdicts=verdict_cards(report),
        objectives=(
            _objective("RTO", "time to recover", aims.rto_target_s, aims.rto_actual_s),
            _objective("RPO", "data that would be lost", aims.rpo_target_s, aims.rpo_actual_s),
        ),
        tables=tuple(sorted(report.tables, key=lambda table: STATUS_ORDER.index(table.status))),
        status_counts=tuple((status, count) for status, count in counts if count),
        tables_equal=len(equal),
        rows_equal=sum(table.actual_rows or 0 for table in equal if table.kind != "shadow"),
        timings=_timing_bars(report.timings),
    )


def _objective(name: str, meaning: str, target: float | None, actual: float | None) -> ObjectiveBar:
    longest = max(target or 0.0, actual or 0.0) * 1.04
    if target is None:
        tone, word = "none", "no target set"
    elif actual is None:
        tone, word = "none", "not measured"
    elif actual > target:
        tone, word = "bad", "missed"
    else:
        tone, word = "good", "met"
    # A length says something beside its target only. There is a little room behind the longer one.
    return ObjectiveBar(
        name=name,
        meaning=meaning,
        target=target,
        actual=actual,
        tone=tone,
        word=word,
        actual_width=None if target is None or actual is None else _percent(actual, longest),
        target_mark=None if target is None else _percent(target, longest),
    )


def _timing_bars(timings: tuple[PhaseTiming, ...]) -> tuple[TimingBar, ...]:
    if not timings:
        return ()
    first = min(timing.started_at for timing in timings)
    starts = [(timing.started_at - first).total_seconds() for timing in timings]
    whole = max(start + max(timing.seconds, 0.0) for start, timing in zip(starts, timings, strict=True))
    bars = []
    for start, timing in zip(starts, timings, strict=True):
        left = _percent(start, whole)
        bars.append(TimingBar(timing, left, round(min(_percent(timing.seconds, whole), 100.0 - left), 2)))
    return tuple(bars)


def _percent(part: float, whole: float) -> float:
    """Between 0 and 100 whatever comes in, to two digits: it goes into a style."""
    if not whole > 0.0 or not math.isfinite(whole):
        return 0.0
    return round(min(max(part / whole, 0.0), 1.0) * 100.0, 2) + 0.0  # turns -0.0 into 0.0

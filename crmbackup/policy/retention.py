"""Which snapshots stay and which go, and why. A pure function: the same snapshots, rules and moment, the same answer.

Periods are counted by the snapshots that there are, not by the calendar: `daily: 7` keeps the last snapshot of each of
the newest seven days that have one, `within` reaches back from the newest snapshot. So a clock that runs ahead, or
backups that stopped long ago, never make a rule empty.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from crmbackup.policy.cron import zone
from crmbackup.policy.model import Retention
from crmbackup.policy.units import format_duration


@dataclass(frozen=True)
class Candidate:
    """One snapshot that a trusted host signed.

    flaw: what it lacks, empty when it is whole. pin: what its pin says, empty without one that holds.
    """

    snapshot_id: str
    captured: datetime
    full: bool
    flaw: str = ""
    pin: str = ""


@dataclass(frozen=True)
class Decision:
    """Whether a snapshot stays. reasons: one or more for one that stays, exactly one for one that goes."""

    candidate: Candidate
    keep: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class _Period:
    """A rule's word for its period, and the period that a local moment is in."""

    rule: str
    word: str
    key: Callable[[datetime], str]


#: The finest first. An hour that the clock goes through twice is two: they differ in their offset from UTC.
_PERIODS = (
    _Period("hourly", "hour", lambda m: f"{m:%Y-%m-%d %H:00%z}"),
    _Period("daily", "day", lambda m: f"{m:%Y-%m-%d}"),
    _Period("weekly", "week", lambda m: f"{m:%G-W%V}"),
    _Period("monthly", "month", lambda m: f"{m:%Y-%m}"),
    _Period("quarterly", "quarter", lambda m: f"{m.year}-Q{(m.month + 2) // 3}"),
    _Period("yearly", "year", lambda m: f"{m:%Y}"),
)


def has_rules(rules: Retention) -> bool:
    """Whether any rule says what to keep. Without, everything is kept."""
    return bool(rules.keep_last or rules.within or any(getattr(rules, period.rule) for period in _PERIODS))


def decide(
    candidates: Iterable[Candidate],
    rules: Retention,
    *,
    now: datetime,
    timezone: str,
    proved: Collection[str] = (),
    drop_flawed: bool = False,
    drop_after: datetime | None = None,
) -> tuple[Decision, ...]:
    """What becomes of each snapshot of one policy, the newest first.

    Args:
        candidates: all of them, in any order.
        rules: of the policy.
        now: the present moment. Snapshots dated later were taken, or are looked at, under a wrong clock: they stay, and
            count for nothing.
        timezone: the IANA zone in which days and hours are told apart.
        proved: ids of snapshots that passed a drill.
        drop_flawed: snapshots that are not whole go, if min_copies whole ones are there. Else they stay, and in either
            case they count for nothing.
        drop_after: snapshots dated later than this go, if min_copies good ones are there.
    """
    ordered = sorted(candidates, key=lambda c: (c.captured, c.snapshot_id), reverse=True)
    counted = [each for each in ordered if not each.flaw and each.captured <= now]
    kept: dict[str, list[str]] = {each.snapshot_id: [] for each in ordered}
    for each in ordered:
        if each.pin:
            kept[each.snapshot_id].append(each.pin)
        if each.captured > now:
            if drop_after and each.captured > drop_after and len(counted) >= rules.min_copies:
                continue
            kept[each.snapshot_id].append("dated in the future")
        elif each.flaw and not (drop_flawed and len(counted) >= rules.min_copies):
            kept[each.snapshot_id].append(f"not whole, counts for nothing: {each.flaw}")
    _keep_by_safety(counted, rules, proved, kept)
    periods = _keep_by_rules(counted, rules, timezone, kept)
    return tuple(_decision(each, kept[each.snapshot_id], periods, timezone, now) for each in ordered)


def _keep_by_safety(
    counted: Sequence[Candidate],
    rules: Retention,
    proved: Collection[str],
    kept: dict[str, list[str]],
) -> None:
    """What stays whatever the rules say."""
    for each in counted[: rules.min_copies]:
        kept[each.snapshot_id].append("newest" if each is counted[0] else f"min_copies {rules.min_copies}")
    for what, found in (
        ("newest full", [each for each in counted if each.full]),
        ("newest that passed a drill", [each for each in counted if each.snapshot_id in proved]),
    ):
        if found:
            kept[found[0].snapshot_id].append(what)


def _keep_by_rules(
    counted: Sequence[Candidate], rules: Retention, timezone: str, kept: dict[str, list[str]]
) -> dict[str, dict[str, str]]:
    """Applies the policy's rules; gives for each period rule the periods that it covers and the snapshot of each."""
    if not has_rules(rules):
        for each in counted:
            kept[each.snapshot_id].append("no retention rule")
        return {}
    for number, each in enumerate(counted):
        if number < rules.keep_last:
            kept[each.snapshot_id].append(f"keep_last {rules.keep_last}")
        if rules.within and counted[0].captured - each.captured <= rules.within:
            kept[each.snapshot_id].append(f"within {format_duration(rules.within)}")
    covered: dict[str, dict[str, str]] = {}
    for period in _PERIODS:
        wanted = getattr(rules, period.rule)
        found = covered[period.rule] = {}
        for each in counted if wanted else ():
            key = _period_of(each, period, timezone)
            if key not in found and len(found) < wanted:
                found[key] = each.snapshot_id
                kept[each.snapshot_id].append(f"{period.rule} {key}")
    return covered


def _period_of(candidate: Candidate, period: _Period, timezone: str) -> str:
    # From UTC into the zone: the other way round two equal wall times could not be told apart.
    return period.key(candidate.captured.astimezone(UTC).astimezone(zone(timezone)))


def _decision(
    candidate: Candidate, reasons: Sequence[str], covered: dict[str, dict[str, str]], timezone: str, now: datetime
) -> Decision:
    if reasons:
        return Decision(candidate, keep=True, reasons=tuple(reasons))
    if candidate.captured > now:
        return Decision(candidate, keep=False, reasons=("dated in the future",))
    if candidate.flaw:
        return Decision(candidate, keep=False, reasons=(f"not whole: {candidate.flaw}",))
    for period in _PERIODS:
        newer = covered.get(period.rule, {}).get(_period_of(candidate, period, timezone))
        if newer:
            return Decision(candidate, keep=False, reasons=(f"{newer} of the same {period.word} stays",))
    return Decision(candidate, keep=False, reasons=("older than all that the rules keep",))

"""How a policy stands, from facts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from crmbackup.core.errors import ObjectDamaged, StorageUnavailable
from crmbackup.operations.checked import Checked, Checks
from crmbackup.operations.drills import Drills
from crmbackup.operations.status import Facts, judge
from crmbackup.policy.due import Record
from crmbackup.repository.manifest import ManifestHeader
from tests.unit.drill_examples import drills, failed, late
from tests.unit.policy_examples import LOCAL, good

NOW = datetime(2026, 5, 5, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
RPO = "objectives: {rpo: 2h}\n"
SCHEDULE = 'schedule: {incremental: "0 * * * *", drill: "0 5 1 * *"}\n'


def header(ago: timedelta, size: int = 1000) -> ManifestHeader:
    at = NOW - ago
    return ManifestHeader(
        "ab" * 16, "cd" * 8, "crm", "full", None, "cd" * 8, "sqlite", "vm", "crmbackup", at, at, at, size, size, (), "ef" * 32
    )  # fmt: skip


def facts(*headers: ManifestHeader, policy: str = RPO, **more: object) -> Facts:
    return Facts(good(LOCAL + policy), NOW, headers=headers, **{"made": NOW - 400 * DAY, **more})  # type: ignore[arg-type]


def codes(found: Facts) -> list[str]:
    return [concern.code for concern in judge(found).concerns]


FRESH = header(HOUR)
REFUSED = Record(started=NOW - HOUR, ended=NOW - HOUR, exit_code=4, error="storage-unavailable: no answer")
DAMAGE = Checked(NOW - DAY, (3, 28), 2, "pack ab is damaged")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (facts(FRESH), []),
        (facts(), ["no-snapshot"]),
        (facts(header(3 * HOUR)), ["rpo-missed"]),
        (facts(header(3 * HOUR), FRESH), []),
        (facts(header(-HOUR)), ["clock"]),
        (facts(FRESH, header(-HOUR)), ["clock"]),
        (facts(header(3 * HOUR), header(-HOUR)), ["clock", "rpo-missed"]),
        (facts(header(-timedelta(minutes=5))), []),
        # Without an RPO the schedule says how old is too old.
        (facts(header(100 * DAY), policy=""), []),
        (facts(header(timedelta(minutes=50)), policy=SCHEDULE, drills=drills(NOW)), []),
        (facts(header(3 * HOUR), policy=SCHEDULE, drills=drills(NOW)), ["backup-missed"]),
        (facts(header(40 * DAY), FRESH, policy=SCHEDULE), ["drill-missed"]),
        # The drill was due before there was anything to restore.
        (facts(header(DAY), FRESH, policy=SCHEDULE, made=NOW - DAY), []),
        # That retention keeps no older snapshot does not mean that none was due.
        (facts(header(DAY), FRESH, policy=SCHEDULE), ["drill-missed"]),
        (facts(header(40 * DAY), FRESH, policy=SCHEDULE, drills=drills(NOW - HOUR)), []),
        (facts(header(40 * DAY), FRESH, policy=SCHEDULE, drills=drills(NOW - 30 * DAY)), ["drill-missed"]),
        (facts(FRESH, drills=drills(NOW - HOUR)), []),
        (facts(FRESH, drills=failed(NOW - HOUR, drills(NOW - DAY))), ["drill-failed"]),
        (facts(FRESH, drills=late(NOW - HOUR)), ["objectives-missed"]),
        (facts(FRESH, drills=Drills(problems=(ObjectDamaged("the drill x cannot be read"),))), ["object-damaged"]),
        (facts(FRESH, distrusted=[ObjectDamaged("manifest x is damaged")]), ["object-damaged"]),
        (facts(problem=StorageUnavailable("no answer"), made=None), ["storage-unavailable"]),
        (facts(FRESH, backup=Record(failures=2, error="source-missing: gone")), ["backup-failed"]),
        (facts(FRESH, backup=Record(exit_code=0), check=Record(exit_code=0)), []),
        (facts(FRESH, check=REFUSED), ["check-failed"]),
        # A check by hand makes up for it, or not.
        (facts(FRESH, check=REFUSED, checks=Checks(Checked(NOW - 2 * HOUR, None, 0))), ["check-failed"]),
        (facts(FRESH, check=REFUSED, checks=Checks(Checked(NOW - HOUR, None, 0))), []),
        (facts(FRESH, checks=Checks(Checked(NOW, None, 0), DAMAGE)), ["check-failed"]),
    ],
)
def test_what_needs_attention(found: Facts, expected: list[str]) -> None:
    assert codes(found) == expected


def test_every_concern_says_what_to_do() -> None:
    bad = facts(
        header(40 * DAY),
        policy=RPO + SCHEDULE,
        drills=failed(NOW - 39 * DAY),
        backup=Record(failures=3, error="source-missing: gone"),
        checks=Checks(DAMAGE, DAMAGE),
    )
    standing = judge(bad)
    assert [each.code for each in standing.concerns] == [
        "rpo-missed", "backup-failed", "check-failed", "drill-failed", "drill-missed",
    ]  # fmt: skip
    assert all("crmbackup " in each.hint for each in standing.concerns)
    assert "3 times in a row" in standing.concerns[1].text
    assert standing.concerns[2].text.endswith("found damage: pack ab is damaged and 1 more")
    assert "`crmbackup check crm --read-data=3/28`" in standing.concerns[2].hint


def test_age_growth_and_what_comes_next() -> None:
    standing = judge(
        facts(header(20 * DAY, 1), *(header(n * HOUR, 1000 - n * 10) for n in range(9, -1, -1)), policy=SCHEDULE)
    )
    assert standing.age == timedelta(0)
    assert standing.growth == pytest.approx(1000 / 910 - 1), "over the last ten"
    assert standing.following == ("incremental", NOW + HOUR)
    assert judge(facts(FRESH)).growth is None
    assert judge(facts(header(DAY, 0), FRESH)).growth is None
    assert judge(facts()).age is None
    assert judge(facts(FRESH)).following is None

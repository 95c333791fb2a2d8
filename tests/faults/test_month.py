"""A month of unattended operation: `run --due` woken as by cron, under a clock that the test sets.

What must come of it is worked out from the documents by `tests/support_month.py`, not by the product.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import date, timedelta
from pathlib import Path

import pytest

from crmbackup.cli import status
from crmbackup.core.audit import AuditLog
from crmbackup.operations.status import Standing
from tests.mariadb import running_mariadb
from tests.postgres import running_server
from tests.receivers import mailbox, webhook
from tests.servers import S3Server
from tests.support_month import GRACE, PARTS
from tests.support_month_host import Month, Place
from tests.support_month_sources import MariadbDatabase, PostgresDatabase, Source, SqliteFile

pytestmark = pytest.mark.filterwarnings("ignore:.*login_data.*:DeprecationWarning")
#: In one of them 2:30 does not exist on a Sunday in Europe, in the other it comes twice.
MARCH, OCTOBER = date(2026, 3, 1), date(2026, 10, 1)
DAY = timedelta(days=1)
#: What may lie in a repository while nothing is at work.
KINDS = ("repository.json", "packs", "snapshots", "condemned", "pins", "drills")


def disk(root: Path) -> Place:
    """A disk that can be unmounted."""
    directory, elsewhere = root / "repository", root / "unmounted"
    return Place(
        (f"url: {directory}",),
        away=lambda: directory.rename(elsewhere) and None,
        back=lambda: elsewhere.rename(directory) and None,
        away_code="storage-misconfigured",
    )


def bucket(root: Path, server: S3Server) -> Place:
    """Object storage whose keys can be withdrawn."""
    (root / "id").write_text(server.access_key)
    secret = root / "secret"
    secret.write_text(server.secret_key)
    settings = (
        f"url: s3://{server.make_bucket()}/crm",
        f"endpoint: {server.endpoint}",
        f"access_key_id: {{file: {root / 'id'}}}",
        f"secret_access_key: {{file: {secret}}}",
    )
    return Place(
        settings,
        away=lambda: secret.write_text("withdrawn") and None,
        back=lambda: secret.write_text(server.secret_key) and None,
        away_code="storage-denied",
    )


@pytest.fixture(params=["sqlite-s3-march", "postgres-october", "mariadb-march"])
def month(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Month]:
    engine = request.param.partition("-")[0]
    first = OCTOBER if request.param.endswith("october") else MARCH
    with ExitStack() as stack:
        source: Source
        if engine == "sqlite":
            source = SqliteFile(tmp_path)
        elif engine == "postgres":
            source = PostgresDatabase(stack.enter_context(running_server(15)))
        else:
            source = MariadbDatabase(stack.enter_context(running_mariadb()), tmp_path)
        s3 = request.getfixturevalue("seaweed") if "s3" in request.param else None
        place = bucket(tmp_path, s3) if s3 else disk(tmp_path)
        found = Month(tmp_path, first, source, place, stack.enter_context(mailbox()), stack.enter_context(webhook()))
        found.begin(monkeypatch)
        yield found


def test_a_month(month: Month) -> None:
    for week in (a_week_of_small_troubles, a_week_without_storage, a_week_with_damage, a_week_with_the_machine_off):
        week(month)
    month.until(month.end)
    the_end(month)


def a_week_of_small_troubles(month: Month) -> None:
    """Each is told once, and so is its end."""
    source = month.source
    month.until(month.at(0, 1, 2, 30))
    source.down()
    month.fails(month.at(0, 1, 2, 30), source.down_code, "backup", told=["backup"])
    month.fails(month.at(0, 1, 2, 45), source.down_code, "backup", told=[])
    source.up()
    month.recovers("backup")

    month.until(month.at(0, 2, 13))
    month.pin(month.newest(), None)
    month.until(month.at(0, 2, 15))
    month.pin(month.newest(), month.at(1, 1, 0))

    month.until(month.at(0, 3, 14, 30))
    source.deny()
    month.fails(month.at(0, 3, 14, 30), source.denied_code, "backup", told=["backup"])
    source.allow()
    month.recovers("backup")

    month.until(month.at(0, 6, 5))
    away = month.identity.rename(month.root / "away.txt")
    month.fails(month.at(0, 6, 5), "secret-unavailable", "drill", told=["drill"])
    away.rename(month.identity)
    month.recovers("drill")


def a_week_without_storage(month: Month) -> None:
    """For two nights; each action tells, and again when it has lasted a day. Then rows are lost, and a run is killed."""
    month.until(month.at(1, 1, 13))
    month.place.away()
    month.away, code = True, month.place.away_code
    month.fails(month.at(1, 1, 14, 30), code, "backup", told=["backup"])
    month.fails(month.at(1, 2, 2, 30), code, "backup", told=[])
    month.fails(month.at(1, 2, 4), code, "prune", told=["prune"])
    month.fails(month.at(1, 2, 4, 30), code, "check", told=["check"])
    month.fails(month.at(1, 2, 14, 30), code, "backup", told=["backup"])
    month.fails(month.at(1, 3, 2, 30), code, "backup", told=[])
    month.fails(month.at(1, 3, 4, 30), code, "prune", "check", told=["prune", "check"])
    month.place.back()
    month.away = False
    month.recovers("backup", "check", "prune", since=month.at(1, 3, 10))

    month.until(month.at(1, 4, 2, 30))
    before = month.source.content()
    month.crm.lose()
    month.fails(month.at(1, 4, 2, 30), "source-shrank", "backup", told=["backup"])
    month.crm.bring_back(before)
    month.recovers("backup")

    month.until(month.at(1, 4, 14, 30))
    month.crm.work()
    month.deadly.touch()
    month.fails(month.at(1, 4, 14, 30), "local", "backup", told=["backup"])
    assert not month.deadly.exists()
    left = month.journal.entries()[-1]
    assert (left.what, left.key[:6]) == ("put", "packs/")
    with closing(month.host.catalog(month.loaded)) as catalog:
        (killed,) = catalog.runs("crm", limit=1)
    assert (killed.outcome, killed.error_code) == ("failed", "local")
    assert timedelta(0) <= killed.started_at - month.at(1, 4, 14, 30) < timedelta(minutes=1)
    month.crm.work()
    month.recovers("backup")
    assert left.key[-64:] not in month.newest().packs


def a_week_with_damage(month: Month) -> None:
    """The check finds it when its part has its turn, and again until it is mended; what is taken since is sound."""
    month.until(month.at(2, 0, 13))
    key, data = month.damage()
    pack = key[-64:]
    for day in range(1, PARTS + 1):
        month.until(month.at(2, day, 4, 30))
        heard = month.wake(month.at(2, day, 4, 30))
        if heard.failed:
            break
    assert heard.failed == {"check": "object-damaged"}
    (finding,) = heard.results["check"]["findings"]
    assert set(finding["snapshots"]) == {snap for snap in month.present if pack in month.snaps[snap].packs}
    month.damaged.add(pack)
    month.tell("check FAILED (object-damaged)")

    month.until(month.at(2, day, 14, 30))
    month.tell("backup done, with warnings (packs-damaged)")
    heard = month.wake(month.at(2, day, 14, 30))
    assert heard.results["backup"]["kind"] == "full"
    assert pack not in month.newest().packs
    month.until(month.at(2, day + 1, 4, 30))
    month.fails(month.at(2, day + 1, 4, 30), "object-damaged", "check", told=["check"])

    month.until(month.at(2, day + 1, 10))
    month.mend(key, data)
    month.until(month.at(2, day + 2, 4, 30))
    month.tell("check works again")
    heard = month.wake(month.at(2, day + 2, 4, 30))
    assert (heard.done, heard.code) == ({"check"}, 0)
    month.damaged.clear()


def a_week_with_the_machine_off(month: Month) -> None:
    """For three days: all that was missed is made up for once."""
    month.until(month.at(3, 1, 15))
    month.crm.work()
    heard = month.wake(month.at(3, 4, 9))
    assert (heard.done, heard.failed) == ({"backup", "prune", "check"}, {})
    month.well(month.at(3, 4, 9, 15), frozenset())


def the_end(month: Month) -> None:
    ((_, standing),) = status._side_by_side(month.host, [month.policy])
    assert isinstance(standing, Standing)
    assert standing.concerns == ()
    assert AuditLog(month.host.paths.audit, month.clock).verify().flaws == ()
    with closing(month.host.catalog(month.loaded)) as catalog:
        assert {each.snapshot_id for each in catalog.snapshots("crm")} >= month.present
        assert {each.snapshot_id for each in catalog.drills("crm")} >= month.proved

    needed = {pack for snap in month.present for pack in month.snaps[snap].packs}
    with month.storage() as storage:
        keys = [info.key for info in storage.list("")]
    assert {key.partition("/")[0] for key in keys} <= {*KINDS}
    packs = {key[-64:] for key in keys if key.startswith("packs/")}
    assert packs >= needed
    # What is no longer needed goes with the first prune of a night that finds it old enough.
    assert not [pack for pack in packs - needed if month.clock.now() - month.orphaned(pack) > GRACE + DAY]
    assert len(month.gone) > 10
    marks = {key.partition("/")[2].partition("-")[0] for key in keys if key.startswith("condemned/")}
    assert marks <= packs - needed

    # Whatever was there through as many checks as there are parts was read by one of them.
    assert len(month.checks) > 20
    for number in range(len(month.checks) - PARTS + 1):
        some = month.checks[number : number + PARTS]
        assert set.intersection(*(wanted for wanted, _ in some)) <= set.union(*(read for _, read in some))

    assert {snap for snap, until in month.pins.items() if until is None} < month.present
    assert 10 < len(month.present) < 30
    for snap in month.present:
        assert month.restore(snap) == month.held[snap], month.snaps[snap]

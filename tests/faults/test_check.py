"""What check says of damage: snapshots, and with the identity the tables that it touches."""

from __future__ import annotations

from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import apsw
import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import LocalError
from crmbackup.core.events import Event, Warned
from crmbackup.engines.postgres.layout import Layout, Part, TableLayout, touched
from crmbackup.operations.checked import Checked, CheckNotes, Checks, damaged_packs, read_checks
from crmbackup.operations.forget import ForgetRules, plan_forget
from crmbackup.policy.model import Retention
from tests.support_repo import Site
from tests.support_tamper import flip

NOW = datetime(2026, 5, 5, tzinfo=UTC)


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A full snapshot of two tables, then an incremental one in which only the second of them grew."""
    site = Site.make(tmp_path_factory.mktemp("check"))
    site.fill(rows=400)
    site.backup("full")
    with closing(apsw.Connection(str(site.database))) as db:
        db.executemany("INSERT INTO bulk (content) VALUES (randomblob(?))", [(5000,)] * 50)
    site.backup("incremental")
    return site


def test_a_damaged_pack_names_its_snapshots_and_tables(grown: Site, tmp_path: Path) -> None:
    site = grown.copy(tmp_path / "copy")
    full, incremental = site.headers()
    (new,) = set(incremental.packs) - set(full.packs)
    flip(site.object_path(f"packs/{new.pack_id[:2]}/{new.pack_id}"), 200)
    (finding,) = site.check().findings
    assert finding.snapshots == (incremental.snapshot_id,)
    # The first page came with it, where the names of all tables are.
    assert finding.tables
    assert "pages, from 1 to " in finding.tables[0]
    assert [f.tables for f in site.check(key=False).findings] == [None]


def test_a_pack_that_is_gone_names_what_lay_in_it(grown: Site, tmp_path: Path) -> None:
    site = grown.copy(tmp_path / "copy")
    full, incremental = site.headers()
    site.object_path(f"packs/{full.packs[0].pack_id[:2]}/{full.packs[0].pack_id}").unlink()
    (finding,) = site.check(read=False).findings
    assert finding.snapshots == (full.snapshot_id, incremental.snapshot_id)
    assert finding.tables == ("contacts",)


def test_rows_definitions_and_large_objects_of_servers_are_told_apart() -> None:
    tables = tuple(
        TableLayout("public", name, f"public.{name}", number, ("id",), (Part(number, 1, 0), Part(number + 10, 1, 0)))
        for number, name in enumerate(("accounts", "contacts"), start=1)
    )
    layout = Layout(150000, {}, (0,), tables, large_object_parts=(Part(5, 1, 0),))
    assert touched(layout, {12, 5}) == ["public.contacts", "large objects"]
    assert touched(layout, {0}) == ["the definitions of all tables"]
    assert touched(layout, {99}) == []


def test_parts_take_turns_and_a_lost_or_spoilt_note_starts_over(tmp_path: Path) -> None:
    notes = CheckNotes(tmp_path, "repository", "crm")
    seen = []
    for _ in range(4):
        seen.append(notes.next_part(3))
        notes.note(Checked(NOW, seen[-1], 0), in_turn=True)
        notes.note(Checked(NOW, (1, 3), 0), in_turn=False)
    assert seen == [(1, 3), (2, 3), (3, 3), (1, 3)]
    assert notes.next_part(4) == (1, 4)
    assert CheckNotes(tmp_path, "repository", None).next_part(3) == (1, 3)
    note = tmp_path / "repository" / "crm" / "check.json"
    for content in (b"", b"{}", b'{"next": 9, "parts": 3}', b"[1]", b'{"last": 1, "damage": {"part": [1]}}'):
        note.write_bytes(content)
        assert notes.next_part(3) == (1, 3)
        assert notes.checks() == Checks()
    note.unlink()
    note.mkdir()
    (note / "x").touch()
    with pytest.raises(LocalError):
        notes.note(Checked(NOW, None, 0), in_turn=False)


@pytest.mark.parametrize(
    ("damaged", "whole", "ended"),
    [
        (None, None, True),
        (None, (2, 3), True),
        ((1, 3), None, False),
        ((1, 3), (2, 3), False),
        ((1, 3), (1, 4), False),
        ((1, 3), (1, 3), True),
        ((1, 3), (1, 1), True),
        ((1, 1), (1, 3), False),
    ],
)
@pytest.mark.parametrize("where", ["crm", None], ids=["policy", "repository"])
def test_damage_is_remembered_until_a_check_that_looked_as_far_finds_it_gone(
    tmp_path: Path, damaged: tuple[int, int] | None, whole: tuple[int, int] | None, ended: bool, where: str | None
) -> None:
    bad, good = Checked(NOW, damaged, 2, "pack ab is damaged"), Checked(NOW + timedelta(days=1), whole, 0)
    CheckNotes(tmp_path, "repository", "crm").note(bad, in_turn=False)
    CheckNotes(tmp_path, "repository", where).note(good, in_turn=False)
    assert read_checks(tmp_path, "repository", "crm") == Checks(good, None if ended else bad)


def test_packs_that_were_damaged_are_named_until_a_check_that_read_them_again_finds_them_whole(tmp_path: Path) -> None:
    notes = CheckNotes(tmp_path, "repository", "crm")
    notes.note(Checked(NOW, (1, 3), 2, "pack a is damaged", ("a", "b")), in_turn=True)
    assert damaged_packs(tmp_path, "repository", "crm") == {"a", "b"}
    assert damaged_packs(tmp_path, "repository", "other") == damaged_packs(tmp_path, "repository", None) == frozenset()
    still = Checked(NOW + timedelta(days=1), (2, 3), 1, "pack b is damaged", ("b",))
    notes.note(still, in_turn=True)
    assert read_checks(tmp_path, "repository", "crm") == Checks(still, still)
    good = Checked(NOW + timedelta(days=2), (3, 3), 0)
    notes.note(good, in_turn=True)
    assert read_checks(tmp_path, "repository", "crm") == Checks(good)
    assert damaged_packs(tmp_path, "repository", "crm") == frozenset()
    # What a check of the whole repository found damaged ends when one of the policy read it again.
    whole = CheckNotes(tmp_path, "repository", None)
    whole.note(Checked(NOW, (1, 1), 3, "pack b is damaged", ("b", "c")), in_turn=False)
    assert damaged_packs(tmp_path, "repository", "crm") == {"b", "c"}
    whole.found_whole(["b", "z"])
    assert damaged_packs(tmp_path, "repository", "crm") == {"c"}
    whole.found_whole(["c"])
    assert whole.checks().damage == Checked(NOW, (1, 1), 1, "pack b is damaged")  # something else was wrong too


def test_what_was_found_damaged_is_read_by_every_check_and_nothing_new_is_built_on_it(
    grown: Site, tmp_path: Path
) -> None:
    site = grown.copy(tmp_path / "copy")
    full, incremental = site.headers()
    (old,) = full.packs
    path = site.object_path(f"packs/{old.pack_id[:2]}/{old.pack_id}")
    flip(path, 200)
    damaged = site.check().damaged
    assert damaged == (old.pack_id,)
    # Without reading all, and also where only presence is looked at.
    assert site.check(read=False).findings == ()
    found = site.check(read=False, suspects=damaged)
    assert (found.damaged, found.packs_read, [finding.code for finding in found.findings]) == (
        damaged,
        0,
        ["object-damaged"],
    )
    rules = ForgetRules("crm", Retention(keep_last=1), "UTC", damaged=damaged)
    plan = plan_forget(site.open(), rules, SystemClock().now(), lambda _: None)
    assert [each.decision.reasons for each in plan.keep] == [
        ("not whole, counts for nothing: 1 of 2 packs damaged",),
        ("not whole, counts for nothing: 1 of 1 packs damaged",),
    ]

    events: list[Event] = []
    expected = site.fill(rows=5)
    taken = site.backup("incremental", damaged=damaged, emit=events.append)
    assert "packs-damaged" in [event.code for event in events if isinstance(event, Warned)]
    assert (taken.header.kind, {*taken.header.packs} & {*full.packs, *incremental.packs}) == ("full", set())
    assert site.restored(taken.header) == expected
    assert site.backup("incremental", damaged=damaged).header.kind == "incremental"

    flip(path, 200)
    found = site.check(read=False, suspects=damaged)
    assert (found.findings, found.damaged, found.mended, found.packs_read) == ((), (), damaged, 1)

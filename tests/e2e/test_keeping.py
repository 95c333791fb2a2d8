"""Retention as a user meets it: pins, forget with its plan, prune, the part of the data that check reads next."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.product import Host, commit_in_future

pytestmark = pytest.mark.e2e


def ids(host: Host) -> list[str]:
    return [line["snapshot_id"] for line in host.run("snapshots", "crm", "--json").lines]


def test_pins_drills_and_rules_decide_what_is_removed_and_nothing_goes_unasked(ready: Host, tmp_path: Path) -> None:
    for _ in range(4):
        ready.run("backup", "crm", "--full")
    first, second, third, fourth, fifth = ids(ready)
    ready.run("drill", "crm", "--snapshot", third)

    # No rule: everything is kept, and said to be.
    assert "has no retention rules: everything is kept" in ready.run("forget", "crm", "--plan").out
    policy = ready.cwd / "policies" / "crm.yaml"
    policy.write_text(policy.read_text() + "retention: {keep_last: 1, min_copies: 1}\nprune: {max_delete: 10%}\n")

    done = ready.run("pin", "crm", first, "--until", "2999-01-01T00:00Z", "--why", "for the auditor")
    assert "is pinned until 2999-01-01 00:00 UTC: for the auditor" in done.out
    assert f"{first}: pinned until 2999" in ready.run("snapshots", "crm").out
    assert "for the auditor" in ready.run("show", "crm", first).out
    ready.run("pin", "crm", first, "--until", "2001-01-01", "--why", "x", code=2)
    ready.run("pin", "crm", "--why", "x", code=2)
    ready.run("unpin", "crm", second, code=5)

    plan = ready.run("forget", "crm", "--plan", "--json").lines
    assert [(line["snapshot_id"], line["keep"]) for line in plan] == [
        (fifth, True),
        (fourth, False),
        (third, True),
        (second, False),
        (first, True),
    ]
    assert ready.run("forget", "crm", "--json", code=2).error["code"] == "usage"
    assert "add --yes" in ready.run("forget", "crm", code=2).err
    assert len(ids(ready)) == 5
    assert ready.run("forget", "crm", "--yes", "--json").one("forgotten")["removed"] == [second, fourth]
    assert ids(ready) == [first, third, fifth]
    assert ready.run("forget", "crm", "--yes").out == ""  # nothing to do, nothing to say under cron

    # A host that has nothing but the address may look, and must not decide whose snapshots count.
    stranger = Host.make(tmp_path / "stranger")
    repository = str(tmp_path / "repository")
    assert "for the auditor" in stranger.run("snapshots", "--repository", repository).out
    stranger.run("pin", "--repository", repository, third, "--why", "x", code=6)
    assert not (stranger.state / "catalog.db").exists()
    identity = ["--identity-file", tmp_path / "identity.txt"]
    stranger.run("unpin", "--repository", repository, first, *identity)
    stranger.run("pin", "--repository", repository, third, "--why", "by the owner", *identity)
    assert ready.run("forget", "crm", "--yes", "--json").one("forgotten")["removed"] == [first]

    # All of it is younger than the grace period, so prune needs no answer; without any key it may run anywhere.
    done = ready.run("prune", "crm", "--json").one("prune-plan")
    assert (done["delete_packs"], done["condemn_packs"], done["snapshots"]) == (0, 0, 2)
    assert done["young_packs"] == 3
    assert "too young" in stranger.run("prune", "--repository", repository, "--plan").out
    assert stranger.run("prune", "--repository", repository, "--disregard", "snapshots/crm/x", code=2)
    ready.run("check", "crm", "--read-data")


def test_check_reads_one_part_after_the_other(ready: Host) -> None:
    read = [ready.run("check", "crm", "--read-data=next/2", "--json").one("check") for _ in range(3)]
    assert [line["part"] for line in read] == [[1, 2], [2, 2], [1, 2]]
    assert read[0]["packs_read"] + read[1]["packs_read"] == read[0]["packs"]
    assert ready.run("check", "crm", "--read-data=next", "--json").one("check")["part"] == [1, 28]
    ready.run("check", "crm", "--read-data=next/0", code=2)


def test_a_snapshot_that_is_dated_in_the_future_can_be_removed(ready: Host, tmp_path: Path) -> None:
    """Else it would be warned of until its date comes, and there is no other way than by hand in the storage."""
    commit_in_future(ready, tmp_path)
    assert "`crmbackup forget crm --future`" in ready.run("status", "crm", code=14).out
    ready.run("forget", "crm", "--yes")
    # Not while there are fewer good ones than min_copies.
    ready.run("forget", "crm", "--future", "--yes")
    assert len(ids(ready)) == 2
    ready.run("backup", "crm")
    good = [name for name in ids(ready) if name != "f" * 16]
    assert "1 go; then all packs are still needed" in ready.run("forget", "crm", "--future", "--plan").out
    ready.run("forget", "crm", "--future", "--yes")
    assert ids(ready) == good
    ready.run("status", "crm")

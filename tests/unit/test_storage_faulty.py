"""The saboteur itself: other tests rely on it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crmbackup.core.errors import StorageDenied, StorageUnavailable
from crmbackup.storage.local import LocalStorage
from tests.faulty import Call, Faulty, Killed


@pytest.fixture
def faulty(tmp_path: Path) -> Faulty:
    return Faulty(LocalStorage(tmp_path))


def test_faults_come_after_so_many_calls_so_many_times_for_matching_keys(faulty: Faulty) -> None:
    faulty.fail("put", StorageDenied("no"), times=2, after=1, when=lambda key: key.startswith("p"))
    outcome = []
    for key in ("p1", "q1", "p2", "q2", "p3", "p4"):
        try:
            faulty.put(key, b"x")
            outcome.append(key)
        except StorageDenied:
            pass
    assert outcome == ["p1", "q1", "q2", "p4"]
    assert [info.key for info in faulty.list("")] == ["p1", "p4", "q1", "q2"]


def test_a_lost_answer_has_its_effect(faulty: Faulty) -> None:
    faulty.fail("put", StorageUnavailable("lost"), effect=True)
    with pytest.raises(StorageUnavailable):
        faulty.put("k", b"data")
    assert faulty.get("k") == b"data"


def test_damage(faulty: Faulty) -> None:
    faulty.put("k", b"0123456789")
    faulty.truncate_get(4, times=3)
    assert faulty.get("k") == b"0123"
    assert faulty.get("k", 1, 3) == b"123"
    with pytest.raises(StorageUnavailable):
        faulty.get("k", 1, 4)
    faulty.flip_byte(-1)
    assert faulty.get("k") == b"0123456788"
    assert faulty.get("k", 2, 3) == b"234"


def test_a_cut_listing(faulty: Faulty) -> None:
    for key in "abc":
        faulty.put(key, b"x")
    faulty.break_list(2)
    seen = []
    with pytest.raises(StorageUnavailable):
        seen.extend(info.key for info in faulty.list(""))
    assert len(list(faulty.list(""))) == 3


def test_vanishing(faulty: Faulty) -> None:
    faulty.put("k", b"data")
    faulty.vanish()
    for call in (
        lambda: faulty.put("k", b""),
        lambda: faulty.get("k"),
        lambda: faulty.list(""),
        lambda: faulty.stat("k"),
    ):
        with pytest.raises(StorageUnavailable):
            call()
    faulty.come_back()
    assert faulty.get("k") == b"data"


@pytest.mark.parametrize("effect", [False, True])
def test_dying(faulty: Faulty, tmp_path: Path, effect: bool) -> None:
    faulty.die_after(2, effect=effect)
    faulty.put("a", b"x")
    faulty.delete("a")
    faulty.list("")
    with pytest.raises(Killed):
        faulty.put("b", b"x")
    with pytest.raises(Killed):
        faulty.get("b")
    assert [path.name for path in tmp_path.iterdir()] == (["b"] if effect else [])


def test_calls_are_recorded(faulty: Faulty) -> None:
    faulty.put("a", b"xyz", if_absent=True)
    faulty.get("a")
    list(faulty.list("p"))
    assert faulty.calls == [Call("put", "a", 3, if_absent=True), Call("get", "a"), Call("list", "p")]
    assert faulty.called("get") == ["a"]

"""Packs that are on their way while their worker goes on: nothing is committed before them, no failure is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from crmbackup.core.errors import LocalError, StorageFull
from crmbackup.core.events import Event, Progress
from crmbackup.operations.shipping import settle
from crmbackup.operations.workers import ProcessWorkers
from tests.support_repo import Site, wait_until
from tests.support_traps import Hold, KillSelf, Raise, Trap

T = TypeVar("T")
#: Of a full with one worker; with two there are more.
PACKS = 3


class WatchedWorkers(ProcessWorkers):
    """Does something when all is shipped and the run is about to wait for the last packs."""

    def __init__(self, before_settle: Callable[[], None], count: int) -> None:
        super().__init__(count)
        self._before_settle = before_settle

    def each(self, work: Callable[..., T], /, *args: object) -> list[T]:
        if work is settle:
            self._before_settle()
        return super().each(work, *args)


def do_nothing() -> None:
    pass


@dataclass(frozen=True)
class HoldThen:
    """As Hold, and then something else, before which there is a file `over`."""

    place: Path
    action: Callable[[], None] = do_nothing

    def __call__(self) -> None:
        try:
            Hold(self.place)()
        finally:
            (self.place / "over").touch()
        self.action()


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """No worker outlives its run."""
    before = psutil.Process().children()
    yield
    assert psutil.Process().children() == before


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, bytes]:
    site = Site.make(tmp_path_factory.mktemp("uploads") / "large")
    return site, site.fill(rows=30, mebibytes=60)  # 24 MiB in each pack


@pytest.fixture
def site(large: tuple[Site, bytes], tmp_path: Path) -> Site:
    return large[0].copy(tmp_path / "site")


def trap(site: Site, at: int, action: Callable[[], None]) -> Trap:
    return Trap(site.spec, site.root / "count", at, action)


def noted(site: Site) -> set[str]:
    """The packs that an interrupted run would leave notes of."""
    path = site.state.directory / "pending.jsonl"
    return {json.loads(line)["pack"][0] for line in path.read_bytes().splitlines()} if path.exists() else set()


def stored(site: Site) -> set[str]:
    return {path.name for path in site.pack_paths()}


def test_the_next_batch_is_made_while_a_pack_is_on_its_way(large: tuple[Site, bytes], site: Site) -> None:
    """Each batch is told of when its pack has begun its way: here the first arrives because the first is told of."""

    def let_go(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "ship":
            wait_until((site.root / "held").exists, "the first upload")
            (site.root / "go").touch()

    taken = site.backup("full", storage=trap(site, 1, Hold(site.root)), emit=let_go)
    assert len(taken.header.packs) == PACKS
    assert site.restored(taken.header) == large[1]


def test_nothing_is_committed_before_the_last_pack_is_stored(large: tuple[Site, bytes], site: Site) -> None:
    seen: list[int] = []

    def look() -> None:
        wait_until((site.root / "held").exists, "the last upload")
        assert not list(site.repo.glob("snapshots/*/*"))
        assert noted(site) == stored(site), "a pack is not noted while it is on its way"
        seen.append(len(stored(site)))
        site.fill(rows=1)  # the source is let go before that: writers do not wait for the upload
        (site.root / "go").touch()

    held = trap(site, PACKS, Hold(site.root))
    taken = site.backup("full", storage=held, make_workers=partial(WatchedWorkers, look))
    assert seen == [PACKS - 1]
    assert {pack.pack_id for pack in taken.header.packs} == stored(site)
    assert taken.added == sum(path.stat().st_size for path in site.pack_paths())
    assert site.restored(taken.header) == large[1]
    assert site.check().findings == ()


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize("which", ["first", "middle", "last"])
def test_an_upload_that_fails_fails_the_run(large: tuple[Site, bytes], site: Site, which: str, jobs: int) -> None:
    packs = len(large[0].copy(site.root / "other").backup("full", jobs=jobs).header.packs)
    assert packs >= PACKS
    at = {"first": 1, "middle": (packs + 1) // 2, "last": packs}[which]
    with pytest.raises(StorageFull, match="no room"):
        site.backup("full", storage=trap(site, at, Raise(StorageFull("no room"))), jobs=jobs)
    assert site.headers() == ()
    assert noted(site) <= stored(site)
    assert site.check().findings == ()
    taken = site.backup("full", jobs=jobs)
    assert site.restored(taken.header) == large[1]


def test_an_upload_that_fails_while_another_hangs_ends_the_run(site: Site) -> None:
    hanging = trap(site, 1, HoldThen(site.root))
    failing = Trap(hanging, site.root / "other-count", 2, Raise(StorageFull("no room")))
    with pytest.raises(StorageFull, match="no room"):
        site.backup("full", storage=failing, jobs=2)
    assert not (site.root / "over").exists(), "it was not waited for"
    assert site.headers() == ()


def test_a_worker_that_is_killed_while_the_run_waits_for_its_upload_is_told_as_such(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    image = site.fill(mebibytes=2)  # one pack
    watched = partial(WatchedWorkers, (site.root / "go").touch)
    with pytest.raises(LocalError, match="worker"):
        site.backup("full", storage=trap(site, 1, HoldThen(site.root, KillSelf())), jobs=2, make_workers=watched)
    assert site.headers() == ()
    assert site.restored(site.backup("full").header) == image


@pytest.mark.parametrize("when", ["shipping", "settling"])
def test_an_interrupted_run_does_not_wait_for_an_upload(large: tuple[Site, bytes], site: Site, when: str) -> None:
    def interrupt(event: Event | None = None) -> None:
        if event is None or (when == "shipping" and isinstance(event, Progress) and event.phase == "ship"):
            wait_until((site.root / "held").exists, "the upload")
            raise KeyboardInterrupt

    at = 1 if when == "shipping" else PACKS
    with pytest.raises(KeyboardInterrupt):
        site.backup(
            "full",
            storage=trap(site, at, HoldThen(site.root)),
            emit=interrupt,
            make_workers=partial(WatchedWorkers, interrupt),
        )
    assert not (site.root / "over").exists(), "it was not waited for"
    assert site.headers() == ()
    assert site.restored(site.backup("full").header) == large[1]

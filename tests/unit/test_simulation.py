"""Writers, collectors, crashes and wrong clocks side by side. `scripts/simulate` runs the same for a million steps."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

import pytest

from crmbackup.repository.chunks import PackInfo
from crmbackup.repository.repository import Repository
from tests.simulation import Rules, Violation, simulate


class Blind(Repository):
    """Does not look again before it commits."""

    def require_kept(self, packs: Iterable[PackInfo]) -> None:
        pass


def test_no_snapshot_lacks_a_pack_whatever_the_order_of_things() -> None:
    done = simulate(6_000, seed=7, each=3_000)
    assert done["worlds"] == 2
    for word in ("backup done", "prune done", "forget done", "packs deleted", "snapshots deleted", "backup crashed"):
        assert done[word], f"the simulation does not reach: {word}"


@pytest.mark.parametrize(
    ("rules", "seed"),
    [(Rules(grace=timedelta()), 28), (Rules(repository=Blind), 38)],
    ids=["no grace period", "no look before the commit"],
)
def test_without_a_safety_rule_the_simulation_finds_what_it_is_there_for(rules: Rules, seed: int) -> None:
    with pytest.raises(Violation, match=r"without|needs it"):
        simulate(100_000, seed, rules, each=10_000)


def test_a_seed_gives_the_same_history_again() -> None:
    assert simulate(800, seed=3) == simulate(800, seed=3)

"""How what is to be read is shared among the workers."""

from __future__ import annotations

from pathlib import Path

from tests.support_repo import Site


def test_little_is_shared_by_all_workers_and_very_little_is_one_pack(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    content = site.fill(rows=60_000)  # about 14 MiB, below what one pack holds
    shared = site.backup("full", jobs=2).header
    assert len(shared.packs) >= 2
    assert max(pack.size for pack in shared.packs) < shared.added_size * 0.7
    assert site.restored(shared) == content

    content = site.fill(rows=1_000)
    little = site.backup("incremental", jobs=2).header
    assert len({pack.pack_id for pack in little.packs} - {pack.pack_id for pack in shared.packs}) == 1
    assert site.restored(little) == content

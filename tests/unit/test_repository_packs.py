"""Lists of packs and what is stored of them: the same answers as plain lists and dicts, in a fraction of their memory."""

from __future__ import annotations

import tracemalloc
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import StorageUnavailable
from crmbackup.core.events import discard
from crmbackup.operations.forget import ForgetRules, plan_forget
from crmbackup.operations.prune import PruneRules, plan_prune
from crmbackup.policy.model import Retention
from crmbackup.repository.chunks import PackInfo, pack_key
from crmbackup.repository.identity import Identity
from crmbackup.repository.manifest import ManifestHeader, encode_manifest
from crmbackup.repository.packs import PackList, StoredPacks
from crmbackup.repository.repository import Repository
from crmbackup.repository.signing import HostKey
from crmbackup.storage.base import ObjectInfo
from tests.memory import MemoryStorage

AT = datetime(2026, 3, 1, 2, 30, 0, 123456, tzinfo=UTC)
# Few different bytes, so that ids begin alike and lie across the borders of others.
IDS = (
    st.lists(st.sampled_from("01"), min_size=1, max_size=32)
    .map(lambda bits: "".join(f"0{bit}" for bit in bits))
    .map(lambda text: (text * 32)[:64])
)
PACKS = st.dictionaries(IDS | st.binary(min_size=32, max_size=32).map(bytes.hex), st.integers(0, 2**40), max_size=60)


def listing(packs: dict[str, int]) -> list[ObjectInfo]:
    found = [ObjectInfo(pack_key(name), size, AT + timedelta(seconds=size % 1000)) for name, size in packs.items()]
    return sorted(found, key=lambda info: info.key)


@given(PACKS, PACKS)
def test_what_is_stored_is_what_a_dict_would_say(packs: dict[str, int], others: dict[str, int]) -> None:
    stored = StoredPacks(listing(packs))
    assert dict(stored) == packs
    assert (len(stored), stored.size) == (len(packs), sum(packs.values()))
    for name in [*packs, *others, "", "zz", "AB" * 32]:
        assert stored.get(name) == packs.get(name)
    for name, size in packs.items():
        position = stored.position(name)
        assert stored.at(position) == PackInfo(name, size)
        assert stored.modified(position) == AT + timedelta(seconds=size % 1000)
    wanted = [PackInfo(name, size) for name, size in {**packs, **others}.items()]
    many = PackList([pack.pack_id for pack in wanted], [pack.size for pack in wanted])
    assert list(stored.look_up(many)) == list(stored.look_up(wanted))
    assert [(position >= 0, size) for position, size in stored.look_up(many)] == [
        (pack.pack_id in packs, pack.size) for pack in wanted
    ]
    assert stored.lacking(many) == sum(packs.get(pack.pack_id) != pack.size for pack in wanted)


@given(PACKS)
def test_a_list_of_packs_is_a_sequence(packs: dict[str, int]) -> None:
    plain = tuple(PackInfo(name, size) for name, size in packs.items())
    many = PackList(list(packs), packs.values())
    assert many == plain
    assert many == PackList(list(packs), packs.values())
    assert hash(many) == hash(plain)
    assert (len(many), tuple(many), many[1:3]) == (len(plain), plain, plain[1:3])
    assert [many[n] for n in range(-len(plain), len(plain))] == [plain[n] for n in range(-len(plain), len(plain))]
    assert many != (*plain, PackInfo("ab" * 32, 1))
    with pytest.raises(IndexError):
        many[len(plain)]


@pytest.mark.parametrize(
    ("names", "sizes"),
    [(["ab"], [1]), (["zz" * 32], [1]), (["ab " * 21 + "a"], [1]), (["ab" * 32], [-1]), (["ab" * 32], [2**64])],
)
def test_what_is_no_pack_is_refused(names: list[str], sizes: list[int]) -> None:
    with pytest.raises(ValueError, match=r"pack|hexadecimal"):
        PackList(names, sizes)


def test_what_lies_elsewhere_is_no_pack_and_a_listing_out_of_order_is_refused() -> None:
    memory = MemoryStorage()
    good = "cd" * 32
    for key in (pack_key(good), f"packs/ab/{good}", "packs/cd/readme", f"packs/CD/{good.upper()}", f"packs/{good}"):
        memory.put(key, b"x")
    assert dict(StoredPacks(memory.list("packs/"))) == {good: 1}
    with pytest.raises(StorageUnavailable):
        StoredPacks(reversed(listing({"ab" * 32: 1, good: 1})))


def test_plans_over_many_snapshots_hold_their_packs_in_little_memory() -> None:
    """What a plan holds at most, of Python's own allocations: 48 bytes for each pack that a snapshot names, and one manifest."""
    memory, key, shared, new = MemoryStorage(lambda: AT), HostKey.generate(), 4000, 400
    repository = Repository.create(memory, Identity.generate(), key, "host", AT)
    names = [f"{number * 2654435761 % 2**32:08x}" * 8 for number in range(shared + 12 * new)]
    for number in range(12):
        packs = [PackInfo(name, 1000) for name in names[number * new : number * new + shared]]
        at, own = AT + timedelta(days=number), f"{number:016x}"
        header = ManifestHeader(
            *(repository.document.repository_id, own, "crm", "full", None, own, "sqlite", "host", "tool"),
            *(at, at, at, 1, 1, packs, key.public.hex()),
        )
        memory.put(header.key, encode_manifest(header, {}, repository.recipients, key))
    for name in names:
        memory.put(pack_key(name), b"")
    tracemalloc.start()
    try:
        now = AT + timedelta(days=60)
        plan = plan_forget(
            repository, ForgetRules("crm", Retention(keep_last=5), "UTC", drop_flawed=True), now, discard
        )
        of_forget = tracemalloc.get_traced_memory()[1]
        assert len(plan.verdicts) == 12
        del plan
        tracemalloc.reset_peak()
        collect = plan_prune(repository, PruneRules(timedelta(days=7), 1.0), SystemClock(), discard, ask_storage=False)
        of_prune = tracemalloc.get_traced_memory()[1]
        assert collect.stored.packs == shared + 12 * new
    finally:
        tracemalloc.stop()
    one_manifest = 700 * shared
    assert of_forget < 12 * shared * 48 + one_manifest
    assert of_prune < one_manifest + 600 * new

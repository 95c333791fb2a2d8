"""Data keys for recipients: whoever is listed can open an object, nobody else can, and no stanza can be changed."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import NotARecipient, ObjectDamaged
from crmbackup.repository.sealing import STANZA_SIZE, new_data_key, stanzas_size, unwrap, wrap

CONTEXT = b"crmbackup/1 test"
KEYS = [X25519PrivateKey.from_private_bytes(bytes([number]) * 32) for number in range(1, 6)]
STRANGER = X25519PrivateKey.from_private_bytes(bytes(range(32)))


def public(key: X25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@settings(deadline=None)
@given(chosen=st.lists(st.sampled_from(KEYS), unique=True), data_key=st.binary(min_size=32, max_size=32))
def test_every_recipient_opens_and_nobody_else(chosen: list[X25519PrivateKey], data_key: bytes) -> None:
    stanzas = wrap(data_key, map(public, chosen), CONTEXT)
    assert len(stanzas) == stanzas_size(stanzas, 0) == 2 + len(chosen) * STANZA_SIZE
    assert data_key not in stanzas
    for key in KEYS:
        if key in chosen:
            assert unwrap(stanzas, key, CONTEXT) == data_key
        else:
            with pytest.raises(NotARecipient):
                unwrap(stanzas, key, CONTEXT)


def test_the_same_key_is_never_sealed_to_the_same_bytes() -> None:
    data_key = new_data_key()
    assert wrap(data_key, [public(KEYS[0])], CONTEXT) != wrap(data_key, [public(KEYS[0])], CONTEXT)
    assert new_data_key() != data_key


def test_stanzas_open_only_where_they_belong() -> None:
    stanzas = wrap(new_data_key(), [public(KEYS[0])], CONTEXT)
    with pytest.raises(ObjectDamaged):
        unwrap(stanzas, KEYS[0], CONTEXT + b" ")


@pytest.mark.parametrize("mask", [0x01, 0x80, 0xFF])
def test_a_flip_of_any_byte_is_noticed(mask: int) -> None:
    """Behind the count, which the object's own hash and signature cover."""
    stanzas = wrap(new_data_key(), [public(KEYS[0]), public(KEYS[1])], CONTEXT)
    for place in range(2, len(stanzas)):
        flipped = bytearray(stanzas)
        flipped[place] ^= mask
        mine, other = (KEYS[0], KEYS[1]) if place < 2 + STANZA_SIZE else (KEYS[1], KEYS[0])
        # X25519 ignores the highest bit of a public key, but that key is also the salt of the derivation.
        with pytest.raises((ObjectDamaged, NotARecipient)):
            unwrap(bytes(flipped), mine, CONTEXT)
        unwrap(bytes(flipped), other, CONTEXT)


def test_a_low_order_point_is_refused() -> None:
    stanzas = bytearray(wrap(new_data_key(), [public(KEYS[0])], CONTEXT))
    stanzas[18:50] = bytes(32)
    with pytest.raises(ObjectDamaged):
        unwrap(bytes(stanzas), KEYS[0], CONTEXT)


def test_one_recipient_cannot_pass_a_stanza_off_as_anothers() -> None:
    stanzas = wrap(new_data_key(), [public(KEYS[0])], CONTEXT)
    renamed = stanzas[:2] + wrap(new_data_key(), [public(KEYS[1])], CONTEXT)[2:18] + stanzas[18:]
    with pytest.raises(ObjectDamaged):
        unwrap(renamed, KEYS[1], CONTEXT)


@settings(deadline=None)
@given(count=st.integers(0, 3), before=st.binary(max_size=9), cut=st.integers(1, 400))
def test_every_cut_is_noticed(count: int, before: bytes, cut: int) -> None:
    whole = before + wrap(new_data_key(), [public(key) for key in KEYS[:count]], CONTEXT)
    short = whole[: max(len(before), len(whole) - cut)]
    with pytest.raises(ObjectDamaged):
        stanzas_size(short, len(before))


@settings(deadline=None)
@given(data=st.binary(max_size=300), offset=st.integers(0, 310))
def test_any_bytes_are_measured_or_refused(data: bytes, offset: int) -> None:
    try:
        size = stanzas_size(data, offset)
    except ObjectDamaged:
        return
    assert offset + size <= len(data)
    with pytest.raises((NotARecipient, ObjectDamaged)):
        unwrap(data[offset : offset + size], STRANGER, CONTEXT)

from __future__ import annotations

import base64
import copy
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import IntegrityError, ObjectDamaged, RepositoryTooNew, UntrustedSignature
from crmbackup.reports.document import to_document
from crmbackup.reports.drill import DrillReport
from crmbackup.reports.signing import CONTEXT, read_document, sign_report, signature_of, verify_report
from tests.unit.report_examples import BROKEN, FAILING, PASSING, REPORTS

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
OTHER = Ed25519PrivateKey.from_private_bytes(b"o" * 32)
SIGNED = sign_report(FAILING, PUBLIC, KEY.sign)


def signed_by_hand(body: object, key: Ed25519PrivateKey = KEY) -> dict[str, object]:
    digest = hashlib.sha256(canonical_json(body))
    return {
        "report": body,
        "report_sha256": digest.hexdigest(),
        "signature": {
            "algorithm": "ed25519",
            "public_key": base64.b64encode(key.public_key().public_bytes_raw()).decode(),
            "value": base64.b64encode(key.sign(b"crmbackup drill report 1\0" + digest.digest())).decode(),
        },
    }


@settings(deadline=None, max_examples=40)
@given(REPORTS)
def test_a_signed_report_verifies_after_the_way_through_a_file(report: DrillReport) -> None:
    document = sign_report(report, PUBLIC, KEY.sign)
    for data in (canonical_json(document), json.dumps(document, indent=2).encode()):
        assert verify_report(read_document(data), trusted={PUBLIC}) == report
        assert verify_report(read_document(data), trusted=None) == report


def test_the_form_is_as_documented() -> None:
    assert sign_report(PASSING, PUBLIC, KEY.sign) == signed_by_hand(to_document(PASSING))
    assert CONTEXT == b"crmbackup drill report 1\0"


def places(value: object, way: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
    """Where every value that is not a container is."""
    if isinstance(value, dict):
        return [place for key, inner in value.items() for place in places(inner, (*way, key))]
    if isinstance(value, list):
        return [place for index, inner in enumerate(value) for place in places(inner, (*way, index))]
    return [way]


def changed(value: object, data: st.DataObject) -> object:
    if isinstance(value, str) and value:
        index = data.draw(st.integers(0, len(value) - 1))
        character = data.draw(st.characters(exclude_categories=["Cs"]))
        return value[:index] + character + value[index + 1 :]
    return data.draw(st.sampled_from([None, True, False, 0, 1, 1.5, "", "x", [], {}]))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_any_changed_value_is_detected(data: st.DataObject) -> None:
    document = copy.deepcopy(SIGNED)
    *way, last = data.draw(st.sampled_from(places(document)))
    node: object = document
    for step in way:
        node = node[step]  # type: ignore[index]
    before = node[last]  # type: ignore[index]
    after = changed(before, data)
    assume(canonical_json(after) != canonical_json(before))
    node[last] = after  # type: ignore[index]
    with pytest.raises(IntegrityError):
        verify_report(document, trusted=None)


@settings(deadline=None)
@given(st.data())
def test_any_flipped_bit_of_the_file_is_detected(data: st.DataObject) -> None:
    content = bytearray(canonical_json(SIGNED))
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(IntegrityError):
        verify_report(read_document(bytes(content)), trusted={PUBLIC})


@given(st.integers(0, 2000))
def test_a_file_cut_short_is_detected(length: int) -> None:
    with pytest.raises(ObjectDamaged):
        verify_report(read_document(canonical_json(SIGNED)[:length]), trusted={PUBLIC})


def test_every_text_of_the_same_key_but_one_is_refused() -> None:
    # 32 bytes leave two bits of the last base64 character unused.
    document = copy.deepcopy(SIGNED)
    key = document["signature"]["public_key"]  # type: ignore[index]
    twin = next(
        text
        for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
        if (text := f"{key[:-2]}{letter}=") != key and base64.b64decode(text) == PUBLIC
    )
    document["signature"]["public_key"] = twin  # type: ignore[index]
    with pytest.raises(ObjectDamaged, match="base64"):
        verify_report(document, trusted={PUBLIC})


def test_the_signer_must_be_trusted() -> None:
    document = signed_by_hand(to_document(PASSING), OTHER)
    with pytest.raises(UntrustedSignature, match="does not list"):
        verify_report(document, trusted={PUBLIC})
    with pytest.raises(UntrustedSignature):
        verify_report(document, trusted=())
    assert verify_report(document, trusted=None) == PASSING


def test_a_signature_of_another_report_is_refused() -> None:
    document = signed_by_hand(to_document(BROKEN)) | {"signature": SIGNED["signature"]}
    with pytest.raises(UntrustedSignature, match="wrong"):
        verify_report(document, trusted={PUBLIC})


def test_a_signature_made_for_another_purpose_is_refused() -> None:
    document = signed_by_hand(to_document(PASSING))
    digest = hashlib.sha256(canonical_json(document["report"])).digest()
    document["signature"]["value"] = base64.b64encode(KEY.sign(digest)).decode()  # type: ignore[index]
    with pytest.raises(UntrustedSignature):
        verify_report(document, trusted={PUBLIC})


def test_signing_with_a_key_that_does_not_fit_fails_at_once() -> None:
    with pytest.raises(UntrustedSignature):
        sign_report(PASSING, PUBLIC, OTHER.sign)


def test_a_later_form_is_told_apart_when_its_signature_is_right() -> None:
    with pytest.raises(RepositoryTooNew):
        verify_report(signed_by_hand({"schema_version": 2}), trusted={PUBLIC})


@pytest.mark.parametrize(
    "document",
    [
        None,
        {},
        {"report": {}},
        SIGNED | {"more": 1},
        SIGNED | {"report": "text"},
        SIGNED | {"report": {"a": "\ud800"}},
        SIGNED | {"signature": {"algorithm": "none", "public_key": "", "value": ""}},
        SIGNED | {"signature": {"algorithm": "ed25519", "public_key": "!", "value": ""}},
        SIGNED | {"signature": {"algorithm": "ed25519", "public_key": "\u00e9", "value": ""}},
        {"report": to_document(PASSING), "report_sha256": SIGNED["report_sha256"], "signature": SIGNED["signature"]},
    ],
)
def test_what_is_no_signed_report_is_damaged(document: object) -> None:
    with pytest.raises(ObjectDamaged):
        verify_report(document, trusted={PUBLIC})


def test_a_key_of_the_wrong_length_is_no_signer() -> None:
    document = signed_by_hand(to_document(PASSING))
    document["signature"]["public_key"] = base64.b64encode(b"short").decode()  # type: ignore[index]
    with pytest.raises(UntrustedSignature):
        verify_report(document, trusted=None)


def test_the_signature_can_be_shown() -> None:
    shown = signature_of(SIGNED)
    assert shown.report_sha256 == SIGNED["report_sha256"]
    assert base64.b64decode(shown.public_key) == PUBLIC

"""Signed drill reports.

A signed report is `{"report": {...}, "report_sha256": hex, "signature": {"algorithm": "ed25519", "public_key": base64,
"value": base64}}`. The digest is the SHA-256 of the canonical JSON of `report`; the signature covers the bytes
`crmbackup drill report 1`, a zero byte, and the 32 bytes of the digest.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.errors import ObjectDamaged, UntrustedSignature
from crmbackup.reports.document import from_document, to_document
from crmbackup.reports.drill import DrillReport

ALGORITHM = "ed25519"
CONTEXT = b"crmbackup drill report 1\0"


@dataclass(frozen=True)
class Signature:
    """What a page shows of a signature: hex digest, and base64 of public key and signature."""

    report_sha256: str
    public_key: str
    value: str


def sign_report(report: DrillReport, public_key: bytes, sign: Callable[[bytes], bytes]) -> dict[str, object]:
    """The signed document. `sign` gives the Ed25519 signature over its argument, by the key of `public_key` (raw bytes).

    The result is verified before it is returned: raises UntrustedSignature if `sign` and `public_key` do not belong
    together, ValueError for a report that has no document.
    """
    body = to_document(report)
    digest = hashlib.sha256(canonical_json(body))
    document: dict[str, object] = {
        "report": body,
        "report_sha256": digest.hexdigest(),
        "signature": {
            "algorithm": ALGORITHM,
            "public_key": _to_base64(public_key),
            "value": _to_base64(sign(CONTEXT + digest.digest())),
        },
    }
    verify_report(document, trusted={public_key})
    return document


def verify_report(document: object, trusted: Collection[bytes] | None) -> DrillReport:
    """The report in a signed document, when nothing in it was changed and its signer is trusted.

    Args:
        document: the JSON value, as `read_document` gives it.
        trusted: raw Ed25519 public keys. None accepts any signer: it shows only that the report was not changed after
            signing, not by whom it was signed.

    Raises:
        ObjectDamaged: the document is cut short or changed.
        UntrustedSignature: the signature is wrong, or by a key that is not trusted.
        RepositoryTooNew: all is well, but the report is of a later form.
    """
    body, signature = _parts(document)
    try:
        digest = hashlib.sha256(canonical_json(body))
    except (TypeError, ValueError) as error:
        raise _damaged(str(error)) from error
    if digest.hexdigest() != signature.report_sha256:
        raise _damaged("its content does not have the SHA-256 that it names")
    public_key = _from_base64(signature.public_key, "public_key")
    try:
        key = Ed25519PublicKey.from_public_bytes(public_key)
        key.verify(_from_base64(signature.value, "value"), CONTEXT + digest.digest())
    except (InvalidSignature, ValueError):
        raise UntrustedSignature(
            "the signature of the drill report is wrong",
            why="it does not fit the report and the public key",
            hint="treat the report as forged; take it again from where the drill wrote it",
        ) from None
    if trusted is not None and public_key not in trusted:
        raise UntrustedSignature(
            "the drill report is signed by a key that the repository does not list",
            why=f"its public key is {signature.public_key}",
            hint="find out which host wrote it before you rely on it",
        )
    return from_document(body)


def signature_of(document: object) -> Signature:
    """The signature fields of a signed document, not verified. Raises ObjectDamaged when they are not there."""
    return _parts(document)[1]


def read_document(data: bytes) -> object:
    """The JSON value in a report file, for `verify_report`. Raises ObjectDamaged."""
    try:
        return parse_json(data)
    except ValueError as error:
        raise _damaged(f"it is not JSON: {error}") from error


def _parts(document: object) -> tuple[dict[object, object], Signature]:
    match document:
        case {
            "report": dict(body),
            "report_sha256": str(digest),
            "signature": {"algorithm": str(algorithm), "public_key": str(public_key), "value": str(value), **more},
            **others,
        } if algorithm == ALGORITHM and not more and not others:
            return body, Signature(digest, public_key, value)
    raise _damaged("it does not have the parts of a signed report")


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _from_base64(text: str, name: str) -> bytes:
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise _damaged(f"{name} is not base64") from None
    # The last character holds bits that decoding drops: without this, several texts would stand for the same bytes.
    if _to_base64(data) != text:
        raise _damaged(f"{name} is not base64 as it is written")
    return data


def _damaged(why: str) -> ObjectDamaged:
    return ObjectDamaged(
        "the signed drill report is damaged", why=why, hint="take the file from where the drill wrote it, unchanged"
    )

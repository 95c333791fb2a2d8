"""One text for one value: JSON whose bytes can be hashed and signed.

The form is what Python's `json` writes with sorted keys (by code point), no spaces, non-ASCII characters as they are,
in UTF-8. Numbers: integers in full, floats in the shortest form that reads back as the same double; `1` and `1.0` are
different values. A reader in another language can therefore check a signature over the stored bytes, or rebuild them.
"""

from __future__ import annotations

import json
import math

TOO_DEEP = "nested too deeply"


def canonical_json(value: object) -> bytes:
    """The canonical bytes of a value made of dict (text keys), list or tuple, str, int, float, bool and None.

    Equal values give equal bytes, and `parse_json` gives the value back (tuples as lists). Raises TypeError for other
    types and for keys that are not text, ValueError for NaN, infinities, cycles, lone surrogates and nesting of several
    hundred levels.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except RecursionError:
        raise ValueError(TOO_DEEP) from None
    _refuse_other_keys(value)
    return text.encode("utf-8")


def parse_json(data: bytes) -> object:
    """The value that UTF-8 JSON text stands for; it need not be canonical. Raises ValueError.

    Stricter than `json.loads`: no NaN or infinities, and no object with the same key twice, because two readers could
    take different ones of the two values behind one signature.
    """
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_no_duplicates,
            parse_constant=_no_constants,
            parse_float=_finite,
        )
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def _refuse_other_keys(value: object) -> None:
    # json.dumps turns 1, None and True into text, so that {1: ..., "1": ...} would hold one key twice.
    pending = [value]
    while pending:
        node = pending.pop()
        if isinstance(node, dict):
            for key in node:
                if not isinstance(key, str):
                    raise TypeError(f"keys must be text, not {type(key).__name__}")
            pending.extend(node.values())
        elif isinstance(node, (list, tuple)):
            pending.extend(node)


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object holds the same key twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large")
    return number


def _no_constants(name: str) -> object:
    raise ValueError(f"{name} is not JSON")

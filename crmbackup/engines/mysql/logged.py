"""What a statement in the binary log may have done to the rows of a database.

In a log by rows, statements are definitions and the frame of transactions. Whatever is not known to be harmless counts
as a change of everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_COMMENT = re.compile(rb"\s*/\*(?![!M]).*?\*/", re.DOTALL)
#: No row of any table is another one after these. Only the first words are looked at: no text of a user comes before.
_HARMLESS = re.compile(
    rb"\s*(?:"
    rb"(?:BEGIN|COMMIT|ROLLBACK)\s*(?:;|/\*.*)?$"
    rb"|(?:SAVEPOINT|ROLLBACK\s+TO|RELEASE\s+SAVEPOINT)\s"
    rb"|XA\s+(?:START|BEGIN|END|PREPARE|ROLLBACK)\s"
    rb"|(?:CREATE|DROP)\s+(?:/\*!\d+\s+)?(?:OR\s+REPLACE\s+)?TEMPORARY\s"
    rb"|(?:OPTIMIZE|ANALYZE)\s+(?:TABLE|TABLES)\s"
    rb"|FLUSH\s"
    rb"|(?:GRANT|REVOKE|SET\s+PASSWORD|(?:CREATE|ALTER|DROP|RENAME)\s+(?:OR\s+REPLACE\s+)?(?:USER|ROLE))\s"
    rb"|(?:CREATE|ALTER|DROP)\s+(?:OR\s+REPLACE\s+)?(?:ALGORITHM\s*=\s*\w+\s+)?(?:DEFINER\s*=\s*\S+\s+)?"
    rb"(?:SQL\s+SECURITY\s+\w+\s+)?(?:AGGREGATE\s+)?(?:VIEW|TRIGGER|PROCEDURE|FUNCTION|EVENT)\s"
    rb")",
    re.IGNORECASE | re.DOTALL,
)
#: They change no table that they do not name.
_NAMING = re.compile(
    rb"\s*(?:TRUNCATE\s|(?:CREATE|ALTER|DROP|RENAME)\s+"
    rb"(?:(?:OR\s+REPLACE|ONLINE|OFFLINE|IGNORE|UNIQUE|FULLTEXT|SPATIAL)\s+)*(?:TABLES?|INDEX|SEQUENCE)\s)",
    re.IGNORECASE,
)
_DATABASE = re.compile(rb"\s*(?:CREATE|ALTER|DROP)\s+(?:OR\s+REPLACE\s+)?(?:DATABASE|SCHEMA)\s", re.IGNORECASE)
_XA = re.compile(rb"\s*XA\s+(END|COMMIT)\s+(.*?)\s*$", re.IGNORECASE | re.DOTALL)


def changed_tables(text: bytes, selected: bytes, database: str, tables: Iterable[str]) -> list[str] | None:
    """Which of the tables of a database a statement may have changed, None for all of them. selected: the database that
    was selected when it ran.
    """
    text = _COMMENT.sub(b"", text, count=1) if _COMMENT.match(text) else text
    if _HARMLESS.match(text):
        return []
    naming = _NAMING.match(text) is not None
    if not naming and not _DATABASE.match(text):
        return None
    lower = text.lower()
    own = database.encode().lower()
    if database.isascii() and selected.lower() != own and own not in lower:
        return []
    if not naming:
        return None
    # The text is in the client's character set, of which all agree in ASCII only.
    return [table for table in tables if not table.isascii() or _named(table, lower)]


def _named(table: str, text: bytes) -> bool:
    """Whether a text in lower case holds a name, not as a part of another one."""
    name = re.escape(table.replace("`", "``").lower().encode())
    return re.search(rb"(?<![0-9a-z_$])" + name + rb"(?![0-9a-z_$])", text) is not None


def prepared_name(text: bytes) -> tuple[str, bytes] | None:
    """For what ends or commits an XA transaction: which of the two ("end", "commit"), and the name of the transaction."""
    found = _XA.match(text)
    return (found[1].lower().decode(), found[2]) if found else None

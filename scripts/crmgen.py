#!/usr/bin/env python3
"""Builds a realistic CRM database in SQLite, and works in it: a day of changes, or a steady writer.

The same rows, seed and SQLite version give the same file, byte for byte. Nothing here asks for the time of day.

    crmgen.py create PATH [--rows N] [--seed S] [--page-size B] [--journal wal|delete]
    crmgen.py workday PATH [--seed S]
    crmgen.py write PATH --seconds S [--seed S] [--pause S]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from itertools import accumulate, pairwise
from pathlib import Path
from random import Random
from typing import Any

import apsw

DEFAULT_ROWS = 6_500  # contacts; about 50 MB
APPLICATION_ID = 0x43524D31  # "CRM1"
USER_VERSION = 42
BUSY_MS = 5_000
FIRST_DAY = datetime(2019, 1, 1)  # noqa: DTZ001  (a CRM stores local time without a zone)
HISTORY_DAYS = 2_000
DATA = Path(__file__).resolve().with_name("crmgen_data")
EMOJI = ("🙂", "🚀", "📞", "👩🏽\u200d💻", "🇩🇪", "✅", "❗")
STATUSES = ("new", "active", "active", "active", "dormant", "lost")
STAGES = ("prospect", "qualified", "proposal", "negotiation", "won", "lost")
DOCUMENT_KINDS = ("application/pdf", "image/jpeg", "text/plain", "application/zip")
CONTACT_SOURCES = ("web", "fair", "referral", None)

SETTINGS: list[tuple[str, object, float | None, bytes | None, int]] = [
    ("business_day", HISTORY_DAYS, None, None, 0),
    ("company.name", "Bäckerei & Söhne 🥨", 1.0, b"", 0),
    ("currency.rate", 1.0 / 3.0, -0.1, bytes(range(256)), 3),
    ("logo", bytes(range(255, -1, -1)) * 20, None, b"\x00", 1),
    ("limits.largest", 2**63 - 1, math.inf, None, 2**40),
    ("limits.smallest", -(2**63), 5e-324, None, 0),
    ("mail.signature", "line one\r\nline two\ttab \\ backslash 'quote' \"double\" \x01", None, None, 0),
    ("nothing", None, None, None, 0),
    ("nothing.at.all", "", 0.0, None, 0),
]


class Language:
    """Names and words of one language."""

    def __init__(self, code: str, entry: dict[str, Any]) -> None:
        self.code = code
        self.first_names: list[str] = entry["first_names"].split()
        self.last_names: list[str] = entry["last_names"].split()
        self.cities: list[str] = entry["cities"].split()
        self.company_forms: list[str] = entry["company_forms"].split()
        self._glue = " " if entry["spaces"] else ""
        self._bytes_per_word: int = entry["bytes_per_word"]
        stems, endings = entry["stems"].split(), entry["endings"].split()
        words = [stem + ending for stem in stems for ending in endings]
        if not entry["spaces"]:
            words += [a + b for a, b in zip(stems, stems[7:] + stems[:7], strict=True)]
        stop = "." if entry["spaces"] else "。"
        # Punctuation belongs to the words, so that one random choice per word makes the text.
        self.words = [*words * 6, *endings * 8, *stems * 6, *(w + stop for w in words), *(w + "," for w in words[::3])]
        self.words += [w + stop + "\n\n" for w in words[::4]]

    def text(self, rnd: Random, size: int) -> str:
        """About `size` bytes of UTF-8, with the numbers that business letters are full of."""
        count = size // self._bytes_per_word + 1
        words = rnd.choices(self.words, k=count)
        for place in range(3, count, 18):
            words[place] = f"{rnd.getrandbits(32)}"
        return self._glue.join(words)


class Writer:
    """Makes rows, all from one seed. Languages appear by their share, like in a middle-European firm."""

    def __init__(self, seed: str) -> None:
        self.rnd = Random(seed)
        entries = json.loads((DATA / "languages.json").read_text("utf-8"))
        self._languages = [Language(code, entry) for code, entry in entries.items()]
        self._weights = list(accumulate(entry["share"] for entry in entries.values()))

    def language(self) -> Language:
        return self.rnd.choices(self._languages, cum_weights=self._weights)[0]

    def moment(self, day: int | None = None) -> str:
        day = self.rnd.randrange(HISTORY_DAYS) if day is None else day
        return (FIRST_DAY + timedelta(days=day, seconds=self.rnd.randrange(86_400))).isoformat(" ")

    def guid(self) -> str:
        return f"{self.rnd.getrandbits(128):032x}"

    def subject(self) -> str | None:
        if self.rnd.random() < 0.08:
            return None
        emoji = f" {self.rnd.choice(EMOJI)}" if self.rnd.random() < 0.1 else ""
        return self.language().text(self.rnd, self.rnd.randrange(10, 60)).replace("\n", " ").strip() + emoji

    def company(self, language: Language) -> str:
        rnd = self.rnd
        return f"{rnd.choice(language.last_names)} {rnd.choice(language.words).strip()} {rnd.choice(language.company_forms)}"

    def account(self, number: int) -> tuple[Any, ...]:
        rnd, language = self.rnd, self.language()
        parent = rnd.randrange(1, number) if number > 10 and rnd.random() < 0.1 else None
        employees = None if rnd.random() < 0.2 else int(10 ** rnd.uniform(0, 5))
        revenue = rnd.choice([None, rnd.randrange(10**9), round(rnd.random() * 1e7, 2)])
        company, city = self.company(language), rnd.choice(language.cities)
        return (number, self.guid(), parent, company, city, language.code, employees, revenue, self.moment())

    def contact(self, number: int, accounts: int) -> tuple[Any, ...]:
        rnd, language = self.rnd, self.language()
        first = None if rnd.random() < 0.05 else rnd.choice(language.first_names)
        last = rnd.choice(language.last_names) + (f"-{rnd.choice(language.last_names)}" if rnd.random() < 0.2 else "")
        email = None if rnd.random() < 0.1 else f"{last}.{rnd.getrandbits(24):x}@example.{language.code}"
        phone = None if rnd.random() < 0.3 else f"+{rnd.randrange(10**10, 10**12)}"
        birthday = None if rnd.random() < 0.6 else self.moment(-rnd.randrange(7_000, 25_000))[:10]
        account = None if rnd.random() < 0.1 else rnd.randrange(1, accounts + 1)
        remarks = None if rnd.random() < 0.5 else language.text(rnd, rnd.randrange(20, 400))
        created = self.moment()
        return (number, self.guid(), account, first, last, email, phone, rnd.choice(language.cities), birthday,
                rnd.gauss(50, 20), rnd.choice(CONTACT_SOURCES), rnd.choice(STATUSES), remarks, created, created)  # fmt: skip

    def lead(self, number: int, contacts: int) -> tuple[Any, ...]:
        rnd, language = self.rnd, self.language()
        name = f"{rnd.choice(language.first_names)} {rnd.choice(language.last_names)}"
        contact = rnd.randrange(1, contacts + 1) if rnd.random() < 0.3 else None
        email, rating = f"{rnd.getrandbits(40):x}@example.com", rnd.choice((None, 1, 2, 3))
        return (number, name, self.company(language), email, rating, contact, self.moment())

    def opportunity(self, number: int, accounts: int, contacts: int) -> tuple[Any, ...]:
        rnd, stage, currency = self.rnd, self.rnd.choice(STAGES), self.rnd.choice(("EUR", "USD", "CNY"))
        closed = self.moment() if stage in ("won", "lost") else None
        amount = rnd.choice((rnd.randrange(100, 10**6), round(rnd.expovariate(1 / 20_000), 2)))
        contact = None if rnd.random() < 0.2 else rnd.randrange(1, contacts + 1)
        return (number, rnd.randrange(1, accounts + 1), contact, self.subject() or "?", stage, amount, currency,
                rnd.randrange(101), closed, self.moment())  # fmt: skip

    def activity(self, number: int | None, contact: int, day: int | None = None) -> tuple[Any, ...]:
        rnd, kind = self.rnd, self.rnd.choice(("call", "meeting", "task", "visit"))
        minutes = rnd.choice((None, 5, 15, 30, 60))
        return (number, contact, kind, self.subject(), self.moment(day), minutes, rnd.getrandbits(1))

    def email(self, number: int | None, contact: int, day: int | None = None) -> tuple[Any, ...]:
        body = self.language().text(self.rnd, int(500 * 12 ** self.rnd.random()))
        return (number, contact, f"<{self.guid()}@example.com>", self.subject(), body, self.moment(day))

    def note(self, number: int | None, contact: int, day: int | None = None) -> tuple[Any, ...]:
        size = self.rnd.randrange(5_000, 40_000) if self.rnd.random() < 0.06 else self.rnd.randrange(60, 1_500)
        return (number, contact, self.subject(), self.language().text(self.rnd, size), self.moment(day))

    def document(self, number: int, accounts: int) -> tuple[Any, ...]:
        rnd = self.rnd
        size = int(2_000 * 30 ** rnd.random())
        noise = int(size * rnd.random())  # like the images inside of an office file
        content = self.language().text(rnd, size - noise).encode() + rnd.randbytes(noise)
        kind, name = rnd.choice(DOCUMENT_KINDS), f"{self.subject() or 'unnamed'}.{number}"
        empty = rnd.random()
        stored = None if empty < 0.01 else b"" if empty < 0.02 else content
        return (number, rnd.randrange(1, accounts + 1), name, kind, stored, self.moment())

    def contact_tag_rows(self, contacts: int, tags: int) -> Iterator[tuple[Any, ...]]:
        for contact in range(1, contacts + 1):
            for tag in sorted(self.rnd.sample(range(1, tags + 1), k=self.rnd.randrange(4))):
                yield (contact, tag, None if self.rnd.random() < 0.3 else self.moment())

    def import_line(self, number: int) -> tuple[Any, ...]:
        payload = f"{self.rnd.getrandbits(64)};{self.subject() or ''};{self.rnd.random():.6f}"
        return (f"import-{number // 500}.csv", number % 500, payload, self.moment())


def generate(path: str | Path, rows: int, seed: int, page_size: int = 4096, wal: bool = True) -> None:
    """Create the database `path` with that many contacts; other tables scale with them.

    Memory is bounded whatever the number. Raises FileExistsError when there is a file of that name.
    """
    if Path(path).exists():
        raise FileExistsError("is there already")
    accounts, tags = max(1, rows // 4), max(4, min(400, rows // 20))
    contacts = max(1, rows)
    make = Writer(f"create {seed}")

    def any_contact() -> int:
        return make.rnd.randrange(1, contacts + 1)

    tables: dict[str, Iterator[tuple[Any, ...]]] = {
        "accounts": (make.account(n) for n in range(1, accounts + 1)),
        "contacts": (make.contact(n, accounts) for n in range(1, contacts + 1)),
        "leads": (make.lead(n, contacts) for n in range(1, contacts // 2 + 2)),
        "opportunities": (make.opportunity(n, accounts, contacts) for n in range(1, contacts // 3 + 2)),
        "activities": (make.activity(n, any_contact()) for n in range(1, contacts * 2 + 1)),
        "emails": (make.email(n, any_contact()) for n in range(1, contacts + 1)),
        "notes": (make.note(n, any_contact()) for n in range(1, contacts // 2 + 2)),
        "documents": (make.document(n, accounts) for n in range(1, contacts // 20 + 2)),
        "tags": ((n, f"{make.subject() or 'tag'} {n}") for n in range(1, tags + 1)),
        "contact_tags": make.contact_tag_rows(contacts, tags),
        "settings": iter(SETTINGS),
        "import_lines": (make.import_line(n) for n in range(contacts + 70)),
    }
    with closing(apsw.Connection(str(path))) as db:
        settings = {"page_size": page_size, "journal_mode": "off", "synchronous": "off", "cache_size": -65_536}
        for name, value in settings.items():
            db.pragma(name, value)
        db.execute("BEGIN")
        db.execute((DATA / "tables.sql").read_text("utf-8")).fetchall()
        for table, source in tables.items():
            _load(db, table, source)
        db.execute((DATA / "after_loading.sql").read_text("utf-8")).fetchall()
        db.execute("COMMIT")
        db.pragma("user_version", USER_VERSION)
        db.pragma("application_id", APPLICATION_ID)
        db.pragma("journal_mode", "wal" if wal else "delete")


def _load(db: apsw.Connection, table: str, source: Iterator[tuple[Any, ...]]) -> None:
    names = [name for (name,) in db.execute("SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0", (table,))]
    db.executemany(f"INSERT INTO {table}({', '.join(names)}) VALUES({', '.join('?' * len(names))})", source)


def _insert(db: apsw.Connection, table: str, row: tuple[Any, ...]) -> int:
    db.execute(f"INSERT INTO {table} VALUES({', '.join('?' * len(row))})", row)
    return db.last_insert_rowid()


def _pick(db: apsw.Connection, make: Writer, table: str) -> int:
    """An id that is there, spread over the whole table; 0 when the table is empty."""
    highest = db.execute(f"SELECT coalesce(max(id), 0) FROM {table}").get
    wanted = make.rnd.randrange(highest) + 1 if highest else 0
    return int(db.execute(f"SELECT coalesce(min(id), 0) FROM {table} WHERE id >= ?", (wanted,)).get)


def _edit_contact(db: apsw.Connection, make: Writer, day: int) -> None:
    contact, city = _pick(db, make, "contacts"), make.rnd.choice(make.language().cities)
    db.execute("UPDATE contacts SET status = ?, city = ?, score = score + 1.5, modified_at = ? WHERE id = ?",
               (make.rnd.choice(STATUSES), city, make.moment(day), contact))  # fmt: skip
    db.execute("UPDATE search SET body = ? WHERE rowid = ?", (city, contact * 2))


def _move_opportunity(db: apsw.Connection, make: Writer, day: int) -> None:
    stage, moment = make.rnd.choice(STAGES), make.moment(day)
    closed = moment if stage in ("won", "lost") else None
    db.execute("UPDATE opportunities SET stage = ?, closed_at = ?, modified_at = ? WHERE id = ?",
               (stage, closed, moment, _pick(db, make, "opportunities")))  # fmt: skip


def _new_contact(db: apsw.Connection, make: Writer, day: int) -> None:
    row = make.contact(0, _pick(db, make, "accounts"))[1:-2]
    moment = make.moment(day)
    _insert(db, "contacts", (None, *row, moment, moment))
    db.execute("INSERT INTO search(rowid, title, body) SELECT id * 2, full_name, city FROM contacts WHERE id = ?",
               (db.last_insert_rowid(),))  # fmt: skip


def _new_email(db: apsw.Connection, make: Writer, day: int) -> None:
    _insert(db, "emails", make.email(None, _pick(db, make, "contacts"), day))
    _insert(db, "activities", make.activity(None, _pick(db, make, "contacts"), day))


def _new_note(db: apsw.Connection, make: Writer, day: int) -> None:
    row = make.note(None, _pick(db, make, "contacts"), day)
    note = _insert(db, "notes", row)
    db.execute("INSERT INTO search(rowid, title, body) VALUES(?, ?, ?)", (note * 2 + 1, row[2], row[3][:600]))


def _delete_note(db: apsw.Connection, make: Writer, _day: int) -> None:
    note = _pick(db, make, "notes")
    db.execute("DELETE FROM notes WHERE id = ?", (note,))
    db.execute("DELETE FROM search WHERE rowid = ?", (note * 2 + 1,))


def _delete_lead(db: apsw.Connection, make: Writer, _day: int) -> None:
    db.execute("DELETE FROM leads WHERE id = ?", (_pick(db, make, "leads"),))
    db.execute("DELETE FROM activities WHERE id = ?", (_pick(db, make, "activities"),))


def _retag(db: apsw.Connection, make: Writer, day: int) -> None:
    contact = _pick(db, make, "contacts")
    db.execute("DELETE FROM contact_tags WHERE contact_id = ?", (contact,))
    _insert(db, "contact_tags", (contact, _pick(db, make, "tags"), make.moment(day)))


def _import_line(db: apsw.Connection, make: Writer, day: int) -> None:
    _insert(db, "import_lines", (*make.import_line(day)[:3], make.moment(day)))
    db.execute("UPDATE settings SET changes = changes + 1 WHERE name = 'currency.rate'")


CHANGES: tuple[Callable[[apsw.Connection, Writer, int], None], ...] = (
    *([_edit_contact] * 4), *([_move_opportunity] * 3), *([_new_email] * 5), *([_new_note] * 2), _new_contact,
    _delete_note, _delete_lead, _retag, _import_line,
)  # fmt: skip


@contextmanager
def _transaction(db: apsw.Connection) -> Iterator[None]:
    # IMMEDIATE, so that busy handling works: a read lock that turns into a write lock may not wait.
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _open(path: str | Path) -> apsw.Connection:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(BUSY_MS)
    db.pragma("foreign_keys", True)
    return db


def _business_day(db: apsw.Connection) -> int:
    return int(db.execute("SELECT value FROM settings WHERE name = 'business_day'").get)


def work_day(path: str | Path, seed: int) -> int:
    """One working day: as many changes as a fortieth of the contacts, in small transactions. Returns their number.

    Raises apsw.BusyError when somebody else holds the database for longer than five seconds.
    """
    with closing(_open(path)) as db:
        day = _business_day(db) + 1
        make = Writer(f"workday {seed} {day}")
        changes = max(20, int(db.execute("SELECT count(*) FROM contacts").get) // 40)
        groups = [0, *sorted(make.rnd.sample(range(1, changes), k=max(1, changes // 8))), changes]
        for start, end in pairwise(groups):
            with _transaction(db):
                for _ in range(start, end):
                    make.rnd.choice(CHANGES)(db, make, day)
        with _transaction(db):
            db.execute("UPDATE settings SET value = ?, changes = changes + 1 WHERE name = 'business_day'", (day,))
    return len(groups)


def write_forever(path: str | Path, stop: Callable[[], bool], seed: int, pause: float = 0.0) -> int:
    """Commit one small change after another, with `pause` seconds between them, until stop() is true.

    A change that finds the database busy for five seconds is given up for the next one. Writers at the same time need
    different seeds. Returns the number of commits.
    """
    commits = 0
    with closing(_open(path)) as db:
        day = _business_day(db) + 1
        # A second run with the same seed must not make the message ids of the first again.
        make = Writer(f"write {seed} {day} {db.execute('SELECT max(id) FROM emails').get}")
        while not stop():
            try:
                with _transaction(db):
                    make.rnd.choice(CHANGES)(db, make, day)
            except apsw.BusyError:
                continue
            commits += 1
            time.sleep(pause)
    return commits


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Builds a realistic CRM database in SQLite, and works in it.")
    commands = parser.add_subparsers(dest="command", required=True)
    create = commands.add_parser("create", help="build a new database")
    create.add_argument("--rows", type=int, default=DEFAULT_ROWS, help="contacts (default: %(default)s, about 50 MB)")
    create.add_argument("--journal", choices=("wal", "delete"), default="wal")
    create.add_argument("--page-size", type=int, default=4096)
    work = commands.add_parser("workday", help="change the database as a day of work does")
    write = commands.add_parser("write", help="change the database steadily")
    write.add_argument("--seconds", type=float, required=True)
    write.add_argument("--pause", type=float, default=0.01, help="seconds between commits (default: %(default)s)")
    for command in (create, work, write):
        command.add_argument("path", metavar="PATH")
        command.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(argv)
    try:
        if options.command == "create":
            generate(options.path, options.rows, options.seed, options.page_size, options.journal == "wal")
            print(f"{options.path}: {options.rows} contacts, {Path(options.path).stat().st_size / 1e6:.1f} MB")
        elif options.command == "workday":
            print(f"{options.path}: {work_day(options.path, options.seed)} transactions")
        else:
            end = time.monotonic() + options.seconds
            commits = write_forever(options.path, lambda: time.monotonic() >= end, options.seed, options.pause)
            print(f"{options.path}: {commits} transactions")
    except (FileExistsError, apsw.Error) as error:
        print(f"{options.path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Statements as MySQL and MariaDB show them: cut at the right places, whatever stands in quotes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.engines.mysql.checks import orphans_sql
from crmbackup.engines.mysql.columns import escaped
from crmbackup.engines.mysql.connection import quoted
from crmbackup.engines.mysql.restore_data import insert_statements
from crmbackup.engines.mysql.statements import (
    definer_clause,
    entry_kind,
    event_disabled,
    for_drill,
    named,
    parse_table,
    referenced,
    renamed,
    sequences_in,
    split_table,
    trigger_at,
    view_renamed,
    with_definer,
    without_tablespace,
)

#: What confuses a scanner most.
NAMES = st.text(st.sampled_from("ab`'\",()\\ \n.;é/*-"), min_size=1, max_size=12)


def text_literal(text: str) -> str:
    """As SHOW CREATE writes one."""
    return "'" + text.replace("\\", "\\\\").replace("'", "''").replace("\n", "\\n") + "'"


@st.composite
def columns(draw: st.DrawFn) -> str:
    kind = draw(
        st.sampled_from(["int(11)", "decimal(10,2)", "enum('a,b','c''d)')", "varchar(20) CHARACTER SET latin1"])
    )
    default = draw(st.sampled_from(["", " DEFAULT (1 + (2))", " GENERATED ALWAYS AS (concat(`x`,')')) VIRTUAL"]))
    return f"{quoted(draw(NAMES))} {kind}{default} COMMENT {text_literal(draw(NAMES))}"


@st.composite
def keys(draw: st.DrawFn) -> tuple[str, str]:
    kind = draw(st.sampled_from(["unique", "key", "foreign", "other"]))
    name, column, other = quoted(draw(NAMES)), quoted(draw(NAMES)), quoted(draw(NAMES))
    comment = f" COMMENT {text_literal(draw(NAMES))}"
    if kind == "unique":
        return kind, f"UNIQUE KEY {name} ({column},{other}(10)){comment}"
    if kind == "key":
        word = draw(st.sampled_from(["KEY", "FULLTEXT KEY", "SPATIAL KEY"]))
        return kind, f"{word} {name} ({column}){comment}"
    if kind == "foreign":
        return kind, f"CONSTRAINT {name} FOREIGN KEY ({column}) REFERENCES {other} ({column}) ON DELETE CASCADE"
    return kind, f"CONSTRAINT {name} CHECK ({column} <> {text_literal(draw(NAMES))})"


@given(
    name=NAMES,
    own=st.lists(columns(), min_size=1, max_size=4),
    more=st.lists(keys(), max_size=5),
    comment=NAMES,
)
@settings(deadline=None)
def test_a_table_is_cut_into_its_columns_and_keys(
    name: str, own: list[str], more: list[tuple[str, str]], comment: str
) -> None:
    entries = [*own, "PRIMARY KEY (`id`)", *(text for _, text in more)]
    tail = f") ENGINE=InnoDB AUTO_INCREMENT=17 DEFAULT CHARSET=utf8mb4 COMMENT={text_literal(comment)}"
    create = f"CREATE TABLE {quoted(name)} (\n  " + ",\n  ".join(entries) + "\n" + tail
    table = parse_table(create)
    assert list(table.entries) == entries
    assert table.text == create
    assert (table.engine, table.counter, table.versioned) == ("InnoDB", 17, False)
    assert table.of("column") == own
    assert [entry_kind(entry) for entry in entries[len(own) + 1 :]] == [kind for kind, _ in more]
    filled, later, foreign = split_table(table, defer_keys=True)
    assert later == tuple(text for kind, text in more if kind in ("unique", "key"))
    assert foreign == tuple(text for kind, text in more if kind == "foreign")
    assert sorted([*filled.entries, *later, *foreign]) == sorted(entries)


def table(*entries: str, tail: str = ") ENGINE=InnoDB") -> str:
    return "CREATE TABLE `t` (\n  " + ",\n  ".join(entries) + "\n" + tail


@pytest.mark.parametrize(
    ("create", "later"),
    [
        # Rows are stored by the first unique key where there is no primary one.
        (table("`a` int NOT NULL", "UNIQUE KEY `u` (`a`)", "KEY `k` (`a`)"), ("KEY `k` (`a`)",)),
        # AUTO_INCREMENT needs its key, and the order of keys must not change.
        (
            table("`a` int", "`n` int NOT NULL AUTO_INCREMENT", "PRIMARY KEY (`a`)", "KEY `k` (`a`)", "KEY `n` (`n`)"),
            (),
        ),
        (table("`n` int NOT NULL AUTO_INCREMENT", "PRIMARY KEY (`n`)", "KEY `k` (`n`)"), ("KEY `k` (`n`)",)),
        (table("`a` int", "KEY `k` (`a`)", tail=") ENGINE=InnoDB WITH SYSTEM VERSIONING"), ()),
        (table("`a` int COMMENT ' AUTO_INCREMENT'", "KEY `k` (`a`)"), ("KEY `k` (`a`)",)),
    ],
)
def test_keys_stay_where_they_are_needed(create: str, later: tuple[str, ...]) -> None:
    assert split_table(parse_table(create), defer_keys=True)[1] == later
    assert split_table(parse_table(create), defer_keys=False)[1] == ()


def test_foreign_keys_name_their_table_and_themselves() -> None:
    assert referenced("CONSTRAINT `a ) REFERENCES ``b` FOREIGN KEY (`x`) REFERENCES `c``(d` (`y`)") == ("c`(d",)
    assert referenced("CONSTRAINT `k` FOREIGN KEY (`x`) REFERENCES `db`.`t` (`y`)") == ("db", "t")
    assert named("CONSTRAINT `we``ird` FOREIGN KEY (`x`) REFERENCES `t` (`y`)") == "we`ird"


def test_what_is_cut_off_is_no_table() -> None:
    for text in ("CREATE TABLE `t`", "CREATE TABLE `t` (\n `a` int"):
        with pytest.raises(ValueError, match="columns"):
            parse_table(text)


def test_names_of_a_database_become_those_of_another_outside_of_strings() -> None:
    text = "select `crm`.`t`.`crm`,'`crm`.`t`',`x`.`crm`.`y` from `crm`.`t` join `crm` on `a``crm`.`b`"
    changed = "select `new`.`t`.`crm`,'`crm`.`t`',`x`.`crm`.`y` from `new`.`t` join `crm` on `a``crm`.`b`"
    assert renamed(text, "crm", "new") == changed
    assert sequences_in("`n` int DEFAULT nextval(`crm`.`se``q`) COMMENT 'nextval(`no`)'") == ["se`q"]


def test_a_view_may_have_a_table_called_as_the_database_is() -> None:
    text = (
        "CREATE VIEW `v` AS select `crm`.`a`,`crm`.`f`(`crm`.`crm`.`b`),extract(year from `crm`.`c`),nextval(`crm`.`s`),"
        "trim(' (select ' from `crm`.`d`) from ((`crm`.`crm` left join `crm`.`t` `crm` on(`crm`.`e` in (select `crm`.`g` from"
        " `crm`.`u`))) join (`crm`.`w` join `x`.`crm`))"
    )
    changed = (
        "CREATE VIEW `v` AS select `crm`.`a`,`new`.`f`(`new`.`crm`.`b`),extract(year from `crm`.`c`),nextval(`new`.`s`),"
        "trim(' (select ' from `crm`.`d`) from ((`new`.`crm` left join `new`.`t` `crm` on(`crm`.`e` in (select `crm`.`g` from"
        " `new`.`u`))) join (`new`.`w` join `x`.`crm`))"
    )
    assert view_renamed(text, "crm", "new") == changed


def test_a_trigger_is_made_wherever_it_was_made_before() -> None:
    head = "CREATE DEFINER=`a b`@`%` TRIGGER crm.`t r` before insert\nON `crm`.contacts FOR EACH ROW"
    body = " PRECEDES `x` SET NEW.a = 'FOR EACH ROW crm.t'"
    expected = "CREATE DEFINER=`a b`@`%` TRIGGER `t r` before insert\nON `contacts` FOR EACH ROW"
    assert trigger_at(head + body, "t r", "contacts") == expected + " SET NEW.a = 'FOR EACH ROW crm.t'"
    plain = "CREATE DEFINER=`a`@`b` TRIGGER t AFTER DELETE ON contacts FOR EACH ROW SET @a = 1"
    assert trigger_at(plain, "t", "contacts") == plain


def test_a_drill_follows_no_directories_and_has_no_keys() -> None:
    body = "CREATE TABLE `t` (\n  `a` int COMMENT ' DATA DIRECTORY=''x',\n  `DATA DIRECTORY` int\n) ENGINE=InnoDB"
    directories = " DATA DIRECTORY='/srv/it''s' INDEX DIRECTORY='/i/'"
    parts = "\n PARTITION BY RANGE (`a`)\n(PARTITION `p` VALUES LESS THAN (5){} COMMENT = 'q' ENGINE = InnoDB)"
    given = body + directories + parts.format(" DATA DIRECTORY = '/srv'")
    assert for_drill(given, private=False) == body + parts.format("")
    body = body.replace("`a` int", "`a` int CHECK (1 and `encrypted` = 'no')") + " COMMENT=' `encrypted`=''yes'"
    for options in (" `encrypted`='yes' `ENCRYPTION_KEY_ID`=2", " ENCRYPTION='Y'"):
        given = body + options + parts.format("")
        assert for_drill(given, private=False) == given
        assert for_drill(given, private=True) == body + parts.format("")


def test_general_tablespaces_are_the_servers_own() -> None:
    body = "CREATE TABLE `t` (\n  `a` int COMMENT ' TABLESPACE `x`',\n  `TABLESPACE` int\n)"
    rest = " ENGINE=InnoDB COMMENT='/*!50100 TABLESPACE `y` */'"
    parts = "\n/*!50100 PARTITION BY RANGE (`a`)\n(PARTITION p VALUES LESS THAN (5){} ENGINE = InnoDB) */"
    given = body + " /*!50100 TABLESPACE `t``s` */" + rest + parts.format(" TABLESPACE = `other`")
    assert without_tablespace(given) == body + rest + parts.format("")
    assert without_tablespace(body + " /*!50100 TABLESPACE `t` STORAGE DISK */" + rest) == body + rest
    assert without_tablespace(body + rest) == body + rest
    assert parse_table(without_tablespace(given)).engine == "InnoDB"


def test_definers_and_the_status_of_events_are_found_where_they_stand() -> None:
    view = "CREATE ALGORITHM=MERGE DEFINER=`o``x`@`%` SQL SECURITY DEFINER VIEW `v` AS select 'DEFINER=`a`@`b` '"
    assert definer_clause(view) == "DEFINER=`o``x`@`%` "
    assert with_definer(view, "") == view.replace("DEFINER=`o``x`@`%` ", "", 1)
    assert with_definer("CREATE VIEW `v` AS select 1", "DEFINER=`a`@`b` ") == "CREATE VIEW `v` AS select 1"
    event = (
        "CREATE DEFINER=`r`@`l` EVENT `an ENABLE DO b` ON SCHEDULE AT '2020-01-01' ON COMPLETION PRESERVE {} DO DO 1"
    )
    for status in ("ENABLE", "DISABLE", "DISABLE ON SLAVE"):
        assert event_disabled(event.format(status)) == event.format("DISABLE")


FIELDS = st.none() | st.binary(max_size=20)


@given(st.lists(st.tuples(FIELDS, FIELDS), max_size=20), st.integers(min_value=1, max_value=200))
def test_rows_become_inserts_that_hold_every_one_of_them_once(
    rows: list[tuple[bytes | None, bytes | None]], limit: int
) -> None:
    lines = b"".join(b"\t".join(map(escaped, row)) + b"\n" for row in rows)
    found = []
    for statement in insert_statements("`t`", (("a", ""), ("b", "")), lines, limit):
        head, _, values = statement.partition(b" VALUES ")
        assert head == b"INSERT INTO `t` (`a`,`b`)"
        found += _values(values)
    assert found == rows


def _values(text: bytes) -> list[tuple[bytes | None, bytes | None]]:
    """Read VALUES as the server would."""
    rows, place = [], 0
    while place < len(text):
        assert text[place : place + 1] in b"(,"
        place += 1 if text[place : place + 1] == b"(" else 2
        row = []
        while True:
            if text.startswith(b"NULL", place):
                row.append(None)
                place += 4
            else:
                assert text.startswith(b"_binary'", place)
                place += len(b"_binary'")
                value = bytearray()
                while text[place : place + 1] != b"'" or text[place + 1 : place + 2] == b"'":
                    letter = text[place : place + 1]
                    if letter == b"\\":
                        value += {b"\\": b"\\", b"t": b"\t", b"n": b"\n"}[text[place + 1 : place + 2]]
                    else:
                        value += letter
                    place += 2 if letter in (b"\\", b"'") else 1
                row.append(bytes(value))
                place += 1
            place += 1
            if text[place - 1 : place] == b")":
                break
        rows.append((row[0], row[1]))
    return rows


def test_orphans_are_looked_for_as_the_other_column_compares() -> None:
    same = ("a", "d", "p", "x", "latin1", "latin1_swedish_ci", "latin1", "latin1_swedish_ci")
    other = ("b", "d", "p", "y", "latin1", "latin1_bin", "utf8mb4", "utf8mb4_bin")
    assert orphans_sql("d", "t", [same, other], there=True) == (
        "SELECT COUNT(*) FROM `d`.`t` f WHERE f.`a` IS NOT NULL AND f.`b` IS NOT NULL AND NOT EXISTS (SELECT 1 FROM `d`.`p`"
        " p WHERE p.`x` = f.`a` AND p.`y` = CONVERT(f.`b` USING utf8mb4) COLLATE utf8mb4_bin)"
    )
    assert "EXISTS" not in orphans_sql("d", "t", [same], there=False)

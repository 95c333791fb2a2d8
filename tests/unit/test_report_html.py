from __future__ import annotations

import html
import json
import re
import shlex
import subprocess
import sys
import unicodedata
from dataclasses import replace
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.reports import wording
from crmbackup.reports.drill import DrillReport, Objectives, RepositoryReading, TableResult, Verdicts
from crmbackup.reports.findings import headline
from crmbackup.reports.html import render_html
from crmbackup.reports.signing import sign_report, signature_of
from tests.unit.report_examples import BROKEN, FAILING, HOSTILE, PASSING, REPORTS, START, timings

VOID = {"meta", "img", "br", "circle", "path"}
ALLOWED = {"html", "head", "meta", "title", "style", "body", "main", "header", "section", "p", "span", "h1", "h2", "h3",
           "bdi", "svg", "circle", "path", "div", "strong", "b", "a", "dl", "dt", "dd", "ul", "li", "table", "thead",
           "tbody", "tr", "th", "td", "code", "pre"}  # fmt: skip


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.verdicts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        classes = (dict(attrs).get("class") or "").split()
        if "verdict" in classes:
            self.verdicts.append(classes[1])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def texts_of(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, tuple):
        return [text for item in value for text in texts_of(item)]
    return [text for item in vars(value).values() for text in texts_of(item)] if hasattr(value, "__dict__") else []


def check_page(text: str) -> Page:
    """Only our own markup, nothing from elsewhere, nothing that runs, nothing invisible."""
    page = Page(text)
    assert set(page.tags) <= ALLOWED
    for tag, name, value in page.attributes:
        assert not name.startswith("on")
        assert name not in {"src", "srcset", "action", "data", "background"}
        if name == "href":
            assert (tag, value) == ("a", "#not-covered")
        if name == "style":
            assert re.fullmatch(r"((left|width):\d{1,3}(\.\d{1,2})?%;?)+", value or "")
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not {c for c in text if unicodedata.category(c) in wording.INVISIBLE} - {"\n", "\t"}
    return page


@settings(deadline=None, max_examples=60)
@given(REPORTS)
def test_no_content_becomes_markup(report: DrillReport) -> None:
    check_page(render_html(report))


@settings(deadline=None, max_examples=60)
@given(REPORTS, st.sampled_from(HOSTILE[:7]))
def test_each_text_is_told_and_escaped(report: DrillReport, hostile: str) -> None:
    table = TableResult(hostile, hostile, "mismatch", 1, 2, hostile, hostile, hostile)
    report = replace(report, tables=(*report.tables, table))
    text = render_html(report)
    for part in texts_of(report):
        # Line ends stay in longer texts and are spelled out in names: either form will do.
        forms = [html.escape(wording.visible(part, lines=lines), quote=False) for lines in (False, True)]
        plain = text.replace("&#34;", '"').replace("&#39;", "'")
        assert any(form in plain for form in forms) or part in {"match", *vars(report.verdicts).values()} | STATUSES
    assert "<script" not in text
    assert "<img" not in text


STATUSES = {"mismatch", "missing", "unexpected", "unreadable", "left-out"}


def test_a_passing_drill_shows_it() -> None:
    page = check_page(render_html(PASSING))
    assert page.verdicts == ["good", "good", "good"]
    for words in (
        "Drill passed",
        "crm-prod",
        "2026-Q3",
        "13 of 13",
        "1,057,201",
        "1.38 GiB",
        "1 min 15 s of 1 h allowed",
    ):
        assert words in page.text
    assert "Drill failed" not in page.text
    assert "uploaded files the policy protects the database only" in page.text


def test_a_failing_drill_shows_it() -> None:
    page = check_page(render_html(FAILING))
    assert page.verdicts == ["good", "bad", "bad"]
    for words in ("Drill failed", "Not as expected: 4 of 14 tables, the schema, 1 check, 1 assertion.", "+29,550",
                  "RTO 1 min 15 s, allowed 1 min", "disk I/O error", "index accounts_name is missing"):  # fmt: skip
        assert words in page.text
    assert "Drill passed" not in page.text
    order = [page.text.index(f" {name} ") for name in ("emails", "users", "roles", "tmp_import", "accounts")]
    assert order == sorted(order), "tables with findings come first"


def test_what_a_drill_left_out_is_seen_wherever_it_passes() -> None:
    """Neither green nor red, with the reason, and first among what is right."""
    left = TableResult("cron.job", "extension configuration", "left-out", 3, None, "aa", None, "pg_cron acts by itself")
    page = check_page(render_html(replace(PASSING, tables=(*PASSING.tables, left))))
    assert page.verdicts == ["good", "good", "good"]
    for words in ("13 of 14", "13 equal", "1 left out", "pg_cron acts by itself"):
        assert words in page.text
    assert page.text.count("Left out and not proved: 1 table") == 2, "in the headline and with the verdict"
    assert page.text.index(" cron.job ") < page.text.index(" accounts ")
    assert "badge warn" in [value for _, name, value in page.attributes if name == "class"]
    page = check_page(render_html(replace(FAILING, tables=(*FAILING.tables, left))))
    assert "Not as expected: 4 of 15 tables" in page.text


def test_a_drill_that_stopped_shows_why() -> None:
    page = check_page(render_html(BROKEN))
    assert page.verdicts == ["bad", "none", "none"]
    for words in ("Drill failed", "cannot list snapshots: access denied", "check the credentials", "storage-denied"):
        assert words in page.text
    assert "not known" in page.text


def test_objectives_that_are_not_set_are_not_green() -> None:
    report = replace(PASSING, objectives=Objectives(None, 74.6), verdicts=Verdicts("passed", "passed", "not-set"))
    page = check_page(render_html(report))
    assert page.verdicts == ["good", "good", "none"]
    assert "no target set" in page.text
    assert "objective good" not in [value for _, name, value in page.attributes if name == "class"]


def test_damage_in_the_repository_is_named() -> None:
    reading = RepositoryReading(3, 99, 2, missing=("packs/ab/one",), damaged=("packs/cd/two",))
    page = check_page(render_html(replace(PASSING, repository=reading)))
    assert "missing packs/ab/one" in page.text
    assert "damaged packs/cd/two" in page.text


def test_a_full_checksum_is_on_the_page() -> None:
    assert PASSING.tables[0].actual_checksum in check_page(render_html(PASSING)).text


@pytest.mark.parametrize(
    ("verdicts", "tone"),
    [
        (("passed", "passed", "met"), "good"),
        (("passed", "passed", "not-set"), "good"),
        (("passed", "passed", "not-run"), "good"),
        (("passed", "passed", "missed"), "warn"),
        (("passed", "failed", "met"), "bad"),
        (("passed", "not-run", "met"), "bad"),
        (("failed", "not-run", "not-run"), "bad"),
        (("not-run", "not-run", "not-run"), "bad"),
    ],
)
def test_only_a_drill_that_proved_something_is_green(verdicts: tuple[str, str, str], tone: str) -> None:
    assert headline(replace(PASSING, verdicts=Verdicts(*verdicts))).tone == tone  # type: ignore[arg-type]


def test_an_unsigned_report_says_so() -> None:
    assert "This report is not signed" in check_page(render_html(PASSING)).text


def test_the_way_to_check_a_signed_report_works(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    report = replace(PASSING, people=replace(PASSING.people, witness="Zo\u00eb \U0001f600 \u2028"))
    document = sign_report(report, key.public_key().public_bytes_raw(), key.sign)
    text = render_html(report, signature_of(document), "crmbackup drill verify <file>")
    page = check_page(text)
    assert "crmbackup drill verify <file>" in page.text
    assert str(document["report_sha256"]) in page.text
    path = tmp_path / "report.json"
    path.write_text(json.dumps(document, indent=1), "utf-8")
    command = html.unescape(re.search(r"<pre>(python3 -c .*?)</pre>", text)[1])  # type: ignore[index]
    argv = [sys.executable, *shlex.split(command.replace("REPORT.json", str(path)))[1:]]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == document["report_sha256"]


def test_phases_share_one_time_line() -> None:
    page = Page(render_html(replace(PASSING, timings=timings(("a", 1.0), ("b", 3.0)))))
    assert [value for _, name, value in page.attributes if name == "style"][-2:] == [
        "left:0.0%;width:25.0%",
        "left:25.0%;width:75.0%",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "\N{EN DASH}"), (0, "0 s"), (0.414, "0.41 s"), (0.999, "1.00 s"), (38.2, "38.2 s"), (59.4, "59.4 s"),
        (59.97, "1 min"), (60, "1 min"), (75.0, "1 min 15 s"), (3599.9, "1 h"), (3600.1, "1 h"), (86399, "23 h 59 min"),
        (86400, "1 d"), (90000, "1 d 1 h"), (-5.0, "\N{MINUS SIGN}5 s"),
    ],
)  # fmt: skip
def test_durations(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.00 KiB"), (1_482_119_002, "1.38 GiB"), (1023 * 1024, "1.00 MiB"),
     (2**70, "1,048,576 PiB")],
)  # fmt: skip
def test_sizes(count: int, text: str) -> None:
    assert wording.size(count) == text


@pytest.mark.parametrize(
    ("expected", "actual", "text"), [(1, 1, ""), (None, 3, ""), (1, 1001, "+1,000"), (5, 3, "\N{MINUS SIGN}2")]
)
def test_differences(expected: int | None, actual: int | None, text: str) -> None:
    assert wording.difference(expected, actual) == text


def test_moments_are_told_in_utc() -> None:
    assert wording.moment(START + timedelta(microseconds=5)) == "2026-07-01 03:00:00 UTC"
    assert wording.moment(None) == "\N{EN DASH}"


@given(st.text())
def test_nothing_invisible_stays(text: str) -> None:
    shown = wording.visible(text)
    assert shown
    assert not any(unicodedata.category(character) in wording.INVISIBLE for character in shown)
    assert wording.visible("a\nb\tc\r", lines=True) == "a\nb\tc\u27e8U+000D\u27e9"

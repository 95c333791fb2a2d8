from __future__ import annotations

import hashlib
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import LocalError, PolicyInvalid, PolicyNotFound
from crmbackup.policy.loader import check_policy, check_policy_file, load_policy
from crmbackup.policy.model import Policy
from tests.unit.policy_examples import LOCAL, bad, good, only


def test_version() -> None:
    body = LOCAL.removeprefix("version: 1\n")
    assert only(body).path == "version"
    assert "this crmbackup knows version 1 only" in only("version: 2\n" + body).message
    for wrong in ("'1'", "1.0", "true"):
        assert "must be the number 1" in only(f"version: {wrong}\n" + body).message


@pytest.mark.parametrize("word", ["yes", "No", "on", "OFF", "010", "0x1F", "0o17", "1_000", "1:30", "1e3", ".inf", ".nan",
                                  "2026-01-31", "99999999999999999999", "1.", "+.5"])  # fmt: skip
def test_what_yaml_readers_differ_about_needs_quotes(word: str) -> None:
    problem = only(f"version: 1\nname: {word}\nsource: {{type: sqlite, path: /a}}\nrepository: {{url: /b}}\n")
    assert problem.path == "name"
    assert "is ambiguous" in problem.message
    assertion = "drill: {assertions: [{name: a, sql: x, expect: %s}]}\n"
    assert "is ambiguous" in only(LOCAL + assertion % word).message
    assert good(LOCAL + assertion % f'"{word}"').drill.assertions[0].expect == word


def test_keys_are_words_whatever_yaml_makes_of_them() -> None:
    assert good(LOCAL + "notify: {apprise: [{on: [failure], url: {env: U}}]}\n").notify.apprise[0].on == ("failure",)
    assert only(LOCAL + "yes: 1\n").path == "yes"
    assert only(LOCAL + '"a b\\e": 1\n').path == r"'a b\x1b'"


def test_keys_given_twice() -> None:
    problem = only(LOCAL + "limits: {jobs: 2}\nlimits: {jobs: 3}\n")
    assert (problem.line, problem.path) == (6, "limits")
    assert "the first is on line 5" in problem.message
    assert only(LOCAL + "limits:\n  jobs: 2\n  'jobs': 2\n").line == 7


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "is empty"),
        ("\n# only a comment\n", 1, "is empty"),
        ("---\n", 1, "is empty"),
        ("~", 1, "is empty"),
        ("- a\n- b\n", 1, "must be a mapping"),
        ("\njust text\n", 2, "must be a mapping"),
        ("a: [1\nb: 2\n", 2, "is not valid YAML"),
        ("version: 1\n\tname: x\n", 2, "tab"),
        ('version: 1\nname: "x\n\n\n', 2, "never closed"),
        ("version: 1\nname: a: b\n", 2, "colon"),
        ("version: 1\n  name: x\n", 2, "is not valid YAML"),
        ("schedule:\n  full: */15 * * * *\n", 2, '"*/15 * * * *"'),
        ("schedule:\n  full: * 2 * * *\n", 2, '"*/15 * * * *"'),
        ("schedule:\n  full: @daily\n", 2, "quotes"),
        ("a: \x00b\n", 1, "control character"),
        ("a: 1\nb: \x07\n", 2, "control character"),
        (LOCAL + "---\n" + LOCAL, 5, "several documents"),
        (LOCAL + "...\n---\nb: 1\n", 6, "several documents"),
        ("a: !!python/object/apply:os.system [x]\n", 1, "tag"),
        ("? [a]\n: b\n", 1, "not a plain word"),
        ("{{ name }}: b\n", 1, "not a plain word"),
        ("a: &x 1\n", 1, "anchor"),
        ("a: *x\n", 1, "alias"),
        ("<<: {a: b}\n", 1, "merge key"),
    ],
)
def test_yaml_that_is_no_policy(text: str, line: int, message: str) -> None:
    assert {each.line for each in bad(text) if message in each.message} == {line}


def test_other_problems_are_told_beside_those_of_the_yaml() -> None:
    paths = [each.path for each in bad("version: 1\nname: yes\nlimits: {jobs: 99}\nsource: *x\n")]
    assert paths == ["repository", "name", "limits.jobs", "source"]


def test_hostile_yaml_does_not_hang() -> None:
    laughs = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 30))
    megabyte = 1024 * 1024
    texts = [
        laughs,
        "a: " + "[" * 100_000,
        "a: " + "{a: " * 100_000,
        "".join(" " * depth + "a:\n" for depth in range(1000)),
        "a: 1\n" * (megabyte // 5),
        "[" + "1," * 500_000,
        "x" * megabyte,
        "x" * (megabyte + 1),
        "? " * 100_000,
        "- " * 100_000,
        "name: " + "9" * 100_000,
        LOCAL + 'schedule: {full: "' + "1," * 100_000 + '1 * * * *"}',
        LOCAL + f"objectives: {{rpo: {'1' * 100_000}s}}",
        LOCAL + f"{'k' * 100_000}: 1",
    ]
    start = time.monotonic()
    for text in texts:
        bad(text)
    assert time.monotonic() - start < 60


@settings(max_examples=150)
@given(st.text(max_size=200) | st.text(alphabet="ab:-[]{}&*!|>'\"%@`#,? \n\t0", max_size=60))
def test_any_text_is_judged(text: str) -> None:
    policy, problems = check_policy(text)
    assert policy is None
    assert all(1 <= each.line <= text.count("\n") + text.count("\r") + 5 for each in problems)
    assert problems


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
KEYS = sorted(Policy.model_fields)


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(KEYS), values, min_size=1))
def test_wrong_values_anywhere_are_problems(changes: dict[str, object]) -> None:
    text = yaml.safe_dump({**yaml.safe_load(LOCAL), **changes}, allow_unicode=True)
    policy, problems = check_policy(text)
    assert (policy is None) == bool(problems)
    for problem in problems:
        assert problem.message != "is not valid"
        assert problem.path or "YAML" in problem.message or "several" in problem.message


def test_loading_a_file(tmp_path: Path) -> None:
    path = tmp_path / "crm.yaml"
    data = ("\ufeff" + LOCAL.replace("\n", "\r\n")).encode()
    path.write_bytes(data)
    loaded = load_policy(path)
    assert loaded.policy == good(LOCAL)
    assert loaded.path == path
    assert loaded.sha256 == hashlib.sha256(data).hexdigest()


def test_an_invalid_file_lists_all_problems(tmp_path: Path) -> None:
    path = tmp_path / "crm.yaml"
    path.write_text(LOCAL + "limit: {}\nretention: {daily: x}\n")
    with pytest.raises(PolicyInvalid) as caught:
        load_policy(path)
    assert f'{path}:5: limit: is not a known key (did you mean "limits"?)' in caught.value.what
    assert f"{path}:6: retention.daily: must be a whole number" in caught.value.what
    loaded, problems = check_policy_file(path)
    assert loaded is None
    assert [each.line for each in problems] == [5, 6]


@pytest.mark.parametrize(
    ("data", "line", "message"),
    [
        (b"", 1, "is empty"),
        (b"a: 1\nb: \xff\n", 2, "is not UTF-8"),
        (LOCAL.encode("utf-16"), 1, "is not UTF-8"),
        (b"SQLite format 3\x00", 1, "control character"),
        (b"\x89PNG\r\n\x1a\n", 1, "is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), 1, "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, data: bytes, line: int, message: str) -> None:
    path = tmp_path / "crm.yaml"
    path.write_bytes(data)
    _, (problem,) = check_policy_file(path)
    assert problem.line == line
    assert message in problem.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(PolicyNotFound):
        load_policy(tmp_path / "absent.yaml")
    with pytest.raises(LocalError):
        load_policy(tmp_path)

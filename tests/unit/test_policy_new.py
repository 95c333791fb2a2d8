from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import PolicyInvalid
from crmbackup.core.secrets import EnvRef, FileRef
from crmbackup.policy.loader import check_policy
from crmbackup.policy.model import Policy
from crmbackup.policy.new import SCHEDULES, SECRETS, NewPolicy, questions, render_policy


def rendered(answers: NewPolicy) -> Policy:
    policy, problems = check_policy(render_policy(answers))
    assert problems == []
    assert policy is not None
    return policy


line = st.text(st.characters(codec="utf-8", exclude_categories=("Cc",)), max_size=30)
tricky = st.sampled_from(
    ["a: b", "it's", '"quoted"', "#no comment", "- x", "{a: b}", "naïve ☃ 💾", "back\\slash", "%", "yes"]
)
paths = (line | tricky).map(lambda text: "/" + text)
names = st.from_regex(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", fullmatch=True)
prefixes = st.from_regex(r"[A-Za-z0-9_-]{1,20}(/[A-Za-z0-9_-]{1,20})?", fullmatch=True)
durations = st.sampled_from(["", "30s", "26h", "1h30m", "7d"])
servers = st.builds(
    "{}://{}@{}/{}{}".format,
    st.sampled_from(["postgresql", "postgres", "mysql", "mariadb"]),
    names,
    st.sampled_from(["localhost", "db.example.org:5433", ""]),
    names,
    st.sampled_from(["", "?sslmode=verify-full"]),
)
common = {
    "name": names,
    "source": paths | servers,
    "schedule": st.sampled_from(list(SCHEDULES)),
    "timezone": st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
    "rpo": durations,
    "rto": durations,
    "secrets": st.sampled_from(SECRETS),
}


@given(
    st.builds(
        NewPolicy,
        repository_url=prefixes.map(lambda prefix: f"s3://bucket/{prefix}"),
        endpoint=st.sampled_from(["", "https://s3.example.org", "http://127.0.0.1:9000"]),
        region=st.sampled_from(["", "eu-central-1", "no", "1e3", "010"]),
        **common,
    )
)
def test_s3_policies_load(answers: NewPolicy) -> None:
    policy = rendered(answers)
    assert policy.name == answers.name
    assert policy.repository.url == answers.repository_url
    assert policy.repository.endpoint == (answers.endpoint or None)
    assert policy.repository.region == (answers.region or None)
    assert (policy.schedule is None) == (answers.schedule == "none")
    kinds = {"file": FileRef, "env": EnvRef, "none": type(None)}
    assert isinstance(policy.repository.secret_access_key, kinds[answers.secrets])


@given(
    st.builds(
        NewPolicy,
        repository_url=(line.filter(str.isprintable) | tricky).map(lambda text: "/" + text),
        **common,
    )
)
def test_local_policies_load(answers: NewPolicy) -> None:
    policy = rendered(answers)
    assert policy.repository.url == answers.repository_url
    if answers.source.startswith("/"):
        assert policy.source.path == Path(answers.source)
    else:
        kind = "postgres" if answers.source.startswith("postgres") else "mysql"
        assert (policy.source.type, policy.source.url) == (kind, answers.source)
    assert (policy.objectives.rpo is None) == (not answers.rpo)


@given(
    st.builds(NewPolicy, line, line, line, line, line, st.sampled_from(SECRETS), st.sampled_from(list(SCHEDULES)), line)
)
def test_whatever_is_rendered_loads(answers: NewPolicy) -> None:
    try:
        text = render_policy(answers)
    except PolicyInvalid:
        return
    assert check_policy(text)[1] == []


def test_wrong_answers_are_told() -> None:
    with pytest.raises(PolicyInvalid, match="must be an absolute path"):
        render_policy(NewPolicy("crm", "crm.db", "/b"))
    with pytest.raises(PolicyInvalid, match="schedule must be one of"):
        render_policy(NewPolicy("crm", "/crm.db", "/b", schedule="sometimes"))
    with pytest.raises(PolicyInvalid, match="only for s3"):
        render_policy(NewPolicy("crm", "/crm.db", "/b", endpoint="https://x"))


def test_the_text_says_what_the_keys_are_for() -> None:
    text = render_policy(NewPolicy("crm", "/crm.db", "s3://bucket", endpoint="https://s3.example.org", rpo="26h"))
    assert text.count("#") >= 8
    assert 'name: "crm"' in text
    assert '{file: "/etc/crmbackup/secrets/crm.secret-access-key"}' in text
    assert 'rpo: "26h"' in text


def test_asking_leads_to_a_policy() -> None:
    typed = {"source": "/srv/crm.db", "repository_url": "s3://bucket/crm", "rpo": "26h"}
    answers: dict[str, str] = {}
    for question in questions():
        if question.applies(answers):
            answer = typed.get(question.key, question.default)
            assert answer is not None, question.key
            assert question.check(answer) == ""
            answers[question.key] = answer
    policy = rendered(NewPolicy(**answers))
    assert policy.name == "crm"
    assert policy.objectives.rpo is not None
    assert policy.schedule is not None


def test_questions_that_make_no_sense_are_not_asked() -> None:
    by_key = {question.key: question for question in questions()}
    assert not by_key["endpoint"].applies({"repository_url": "/srv/backup"})
    assert by_key["endpoint"].applies({"repository_url": "s3://bucket"})
    assert not by_key["timezone"].applies({"schedule": "none"})


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("name", ".x"),
        ("source", "crm.db"),
        ("source", "postgresql://crm:secret@localhost/crm"),
        ("source", "oracle://localhost/crm"),
        ("repository_url", "ftp://x"),
        ("endpoint", "s3.example.org"),
        ("region", "a b"),
        ("secrets", "here"),
        ("schedule", "sometimes"),
        ("timezone", "Mars/Base"),
        ("rpo", "1 day"),
        ("rto", "soon"),
    ],
)
def test_questions_check_their_answer(key: str, wrong: str) -> None:
    (question,) = (each for each in questions() if each.key == key)
    assert question.check(wrong)
    assert question.default is None or question.check(question.default) == ""

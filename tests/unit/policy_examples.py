"""Texts of policies, and what tests expect of them."""

from __future__ import annotations

from crmbackup.policy.loader import check_policy
from crmbackup.policy.model import Policy
from crmbackup.policy.problems import Problem

HEAD = "version: 1\nname: crm\nsource: {type: sqlite, path: /srv/crm.db}\n"
LOCAL = HEAD + "repository: {url: /srv/backup}\n"


def good(text: str) -> Policy:
    policy, problems = check_policy(text)
    assert problems == []
    assert policy is not None
    return policy


def bad(text: str) -> list[Problem]:
    policy, problems = check_policy(text)
    assert policy is None
    assert problems
    return problems


def only(text: str) -> Problem:
    (problem,) = bad(text)
    return problem

"""A pytest plugin: where skips are forbidden, a skipped test is a failure. Loaded with `-p tests.noskip`.

A test that skips itself when something is missing is silent exactly when it should speak.
"""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest


def skips_are_forbidden() -> bool:
    return os.environ.get("CI") == "true" or os.environ.get("CRMBACKUP_TEST_DISALLOW_SKIP") == "1"


def _reason(longrepr: object) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    expected_failure = hasattr(report, "wasxfail")
    if report.skipped and not expected_failure and skips_are_forbidden():
        report.outcome = "failed"
        report.longrepr = f"{_reason(report.longrepr)}\nSkips are forbidden here (CI or CRMBACKUP_TEST_DISALLOW_SKIP)."
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and skips_are_forbidden():
        report.outcome = "failed"
        report.longrepr = f"{_reason(report.longrepr)}\nSkips are forbidden here (CI or CRMBACKUP_TEST_DISALLOW_SKIP)."
    return report

"""Where skips are forbidden, every way to skip is a failure; elsewhere nothing changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SKIPS = {
    "call": "import pytest\ndef test_it():\n    pytest.skip('the server is absent')",
    "mark": "import pytest\n@pytest.mark.skip(reason='the server is absent')\ndef test_it():\n    pass",
    "condition": "import pytest\n@pytest.mark.skipif(True, reason='the server is absent')\ndef test_it():\n    pass",
    "fixture": "import pytest\n@pytest.fixture\ndef server():\n    pytest.skip('the server is absent')\n"
    "def test_it(server):\n    pass",
    "module": "import pytest\npytest.skip('the server is absent', allow_module_level=True)",
    "import": "import pytest\npytest.importorskip('the_server', reason='the server is absent')",
}


def run(directory: Path, code: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(code)
    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "CRMBACKUP_TEST_DISALLOW_SKIP")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.noskip", "-p", "no:cacheprovider", "-q", *arguments],
        cwd=directory,
        env={**clean, "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("way", SKIPS)
def test_a_skip_fails_where_it_is_forbidden(tmp_path: Path, way: str) -> None:
    done = run(tmp_path, SKIPS[way], CRMBACKUP_TEST_DISALLOW_SKIP="1")
    assert done.returncode not in (0, 5), done.stdout
    assert "the server is absent" in done.stdout
    assert "Skips are forbidden" in done.stdout


def test_workers_and_ci_forbid_it_too(tmp_path: Path) -> None:
    done = run(tmp_path, SKIPS["mark"], "-n", "1", CI="true")
    assert done.returncode == 1, done.stdout


@pytest.mark.parametrize("way", ["call", "mark", "fixture"])
def test_a_skip_is_a_skip_elsewhere(tmp_path: Path, way: str) -> None:
    done = run(tmp_path, SKIPS[way])
    assert (done.returncode, "1 skipped" in done.stdout) == (0, True), done.stdout


def test_an_expected_failure_is_no_skip(tmp_path: Path) -> None:
    code = "import pytest\n@pytest.mark.xfail\ndef test_it():\n    assert False"
    done = run(tmp_path, code, CI="true")
    assert (done.returncode, "1 xfailed" in done.stdout) == (0, True), done.stdout

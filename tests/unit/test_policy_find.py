from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

import pytest

from crmbackup.core.errors import PolicyNotFound
from crmbackup.policy.find import call_of, find_policy, list_policies, policy_directories


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    first, second = tmp_path / "policies", tmp_path / "etc"
    for directory, names in (
        (first, ["crm.yaml", "shop.yml"]),
        (second, ["crm.yaml", "erp.yaml", "note.txt", ".x.yaml"]),
    ):
        directory.mkdir()
        for name in names:
            (directory / name).touch()
    (second / "dir.yaml").mkdir()
    return [first, second]


def test_by_name_the_first_directory_wins(tmp_path: Path, two: list[Path]) -> None:
    assert find_policy("crm", cwd=tmp_path, directories=two) == two[0] / "crm.yaml"
    assert find_policy("shop", cwd=tmp_path, directories=two) == two[0] / "shop.yml"
    assert find_policy("erp", cwd=tmp_path, directories=two) == two[1] / "erp.yaml"


def test_the_usual_directories(tmp_path: Path, two: list[Path]) -> None:
    assert policy_directories(tmp_path) == [tmp_path / "policies", Path("/etc/crmbackup/policies")]
    assert find_policy("crm", cwd=tmp_path) == two[0] / "crm.yaml"


def test_by_path(tmp_path: Path, two: list[Path]) -> None:
    assert find_policy("policies/crm.yaml", cwd=tmp_path) == two[0] / "crm.yaml"
    assert find_policy("crm.yaml", cwd=two[1]) == two[1] / "crm.yaml"
    assert find_policy(str(two[1] / "note.txt"), cwd=tmp_path) == two[1] / "note.txt"


@pytest.mark.parametrize("typed", ["crm", "policies/shop.yml", "alone.yaml", "./alone", "my crm/new.yaml"])
def test_what_to_type_for_a_file_finds_it(tmp_path: Path, two: list[Path], typed: str) -> None:
    """Hints say it; a file that lies elsewhere has no name that is looked up."""
    (tmp_path / "my crm").mkdir()
    for name in ("alone.yaml", "alone", "my crm/new.yaml"):
        (tmp_path / name).touch()
    path = find_policy(typed, cwd=tmp_path)
    (word,) = shlex.split(call_of(path, cwd=tmp_path))
    assert find_policy(word, cwd=tmp_path) == path
    (word,) = shlex.split(call_of(path, cwd=tmp_path / "my crm"))
    assert find_policy(word, cwd=tmp_path / "my crm") == path


def test_not_found_tells_where_and_what_is_near(tmp_path: Path, two: list[Path]) -> None:
    with pytest.raises(PolicyNotFound) as caught:
        find_policy("Cmr", cwd=tmp_path, directories=two)
    assert str(two[0]) in caught.value.why
    assert str(two[1]) in caught.value.why
    assert "did you mean crm" in caught.value.hint
    with pytest.raises(PolicyNotFound) as caught:
        find_policy("zzz", cwd=tmp_path, directories=two)
    assert "there are: crm, erp, shop" in caught.value.hint
    with pytest.raises(PolicyNotFound) as caught:
        find_policy("zzz", cwd=tmp_path, directories=[tmp_path / "absent"])
    assert "no policies" in caught.value.hint
    with pytest.raises(PolicyNotFound) as caught:
        find_policy("policies/crn.yaml", cwd=tmp_path)
    assert "did you mean crm" in caught.value.hint
    with pytest.raises(PolicyNotFound):
        find_policy("policies/", cwd=tmp_path)


def test_listing(tmp_path: Path, two: list[Path]) -> None:
    assert list_policies(two) == [two[0] / "crm.yaml", two[1] / "erp.yaml", two[0] / "shop.yml"]
    assert list_policies([tmp_path / "absent"]) == []
    (two[0] / "crm.yml").touch()
    assert list_policies(two)[0] == two[0] / "crm.yaml"


def test_what_another_user_keeps_to_himself_hides_nothing_of_ours(
    tmp_path: Path, two: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """root's first `init` makes /etc/crmbackup, and nobody else may enter it: policies in there are not theirs."""
    closed = tmp_path / "root" / "policies"
    real = Path.stat

    def stat(self: Path, **options: bool) -> os.stat_result:
        if self.is_relative_to(tmp_path / "root"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(self, **options)

    monkeypatch.setattr(Path, "stat", stat)
    assert find_policy("crm", cwd=tmp_path, directories=[two[0], closed]) == two[0] / "crm.yaml"
    with pytest.raises(PolicyNotFound) as caught:
        find_policy("zzz", cwd=tmp_path, directories=[two[0], closed])
    assert f"{closed} (which this user may not enter; try sudo)" in caught.value.why
    assert f"{two[0]}, " in caught.value.why

"""Optional packages: present, missing, and broken while they are imported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from library.core.errors import UserError
from library.core.optional import import_optional


def test_gives_the_module_when_it_is_there() -> None:
    assert import_optional("json", "json", "--flag") is json


@pytest.mark.parametrize("module", ["no_such_package_anywhere", "no_such_package_anywhere.part"])
def test_a_missing_package_is_named_as_pip_knows_it(module: str) -> None:
    with pytest.raises(UserError, match=r"--xformers: the package xformers==0\.0\.35 is not installed") as caught:
        import_optional(module, "xformers==0.0.35", "--xformers")
    assert "pip install xformers==0.0.35" in str(caught.value)
    assert "tools/doctor.py" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [("raise RuntimeError('no CUDA found')", "RuntimeError: no CUDA found"), ("import no_such_part", "no_such_part")],
)
def test_a_broken_package_is_not_called_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, reason: str
) -> None:
    (tmp_path / "broken_package.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=f"cannot be used: .*{reason}") as caught:
        import_optional("broken_package", "broken-package", "--flag")
    assert "pip install" not in str(caught.value)
    assert "tools/doctor.py" in str(caught.value)

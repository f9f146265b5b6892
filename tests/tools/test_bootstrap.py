"""The environment maker: stamp, paths, and the messages; pip itself is never run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PureWindowsPath

import pytest

import bootstrap


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with a real virtual environment without pip, and requirement files."""
    (tmp_path / "requirements.txt").write_text("# pins\ntorch==2.13.0\nonnxruntime==1.31.1\n-e .\n")
    (tmp_path / "requirements-dev.txt").write_text("pytest==9.2.0\n")
    (tmp_path / "setup.py").write_text("# setup\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / ".venv")], check=True)
    return tmp_path


def stamp_for(project: Path, files: tuple[str, ...]) -> Path:
    venv = project / ".venv"
    stamp = venv / bootstrap.STAMP_NAME
    bootstrap.write_stamp(stamp, bootstrap.wanted_stamp(project, venv, files))
    return stamp


def pretend_installed(project: Path, folder: str) -> None:
    site = next((project / ".venv").glob("**/site-packages"))
    (site / folder).mkdir()


def test_venv_python_stands_where_each_system_puts_it() -> None:
    assert bootstrap.venv_python(Path("v"), windows=False) == Path("v/bin/python")
    assert PureWindowsPath(bootstrap.venv_python(Path("v"), windows=True)) == PureWindowsPath(r"v\Scripts\python.exe")


def test_a_fitting_stamp_means_that_nothing_is_run(project: Path) -> None:
    stamp_for(project, bootstrap.RUNTIME)  # this environment has no pip: any installation would fail
    assert bootstrap.ensure_environment(project, bootstrap.RUNTIME) == bootstrap.venv_python(project / ".venv")


def test_the_stamp_of_the_tests_covers_the_runtime_but_not_the_other_way_round(project: Path) -> None:
    venv = project / ".venv"
    stamp = stamp_for(project, bootstrap.WITH_TESTS)
    assert bootstrap.is_current(stamp, bootstrap.wanted_stamp(project, venv, bootstrap.RUNTIME))
    stamp = stamp_for(project, bootstrap.RUNTIME)
    assert not bootstrap.is_current(stamp, bootstrap.wanted_stamp(project, venv, bootstrap.WITH_TESTS))


@pytest.mark.parametrize("changed", ["requirements.txt", "setup.py"])
def test_a_changed_file_makes_the_stamp_old(project: Path, changed: str) -> None:
    stamp = stamp_for(project, bootstrap.RUNTIME)
    (project / changed).write_text("something==1.0\n")
    assert not bootstrap.is_current(stamp, bootstrap.wanted_stamp(project, project / ".venv", bootstrap.RUNTIME))


def test_line_ends_do_not_make_the_stamp_old(project: Path) -> None:
    stamp = stamp_for(project, bootstrap.RUNTIME)
    file = project / "requirements.txt"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    assert bootstrap.is_current(stamp, bootstrap.wanted_stamp(project, project / ".venv", bootstrap.RUNTIME))


def test_another_python_makes_the_stamp_old(project: Path) -> None:
    stamp = stamp_for(project, bootstrap.RUNTIME)
    wanted = bootstrap.wanted_stamp(project, project / ".venv", bootstrap.RUNTIME)
    assert wanted["python"].startswith(f"{sys.version_info[0]}.{sys.version_info[1]}")
    assert not bootstrap.is_current(stamp, {**wanted, "python": "3.99.0"})


def test_a_moved_project_makes_the_stamp_old(project: Path) -> None:
    stamp = stamp_for(project, bootstrap.RUNTIME)
    wanted = bootstrap.wanted_stamp(project, project / ".venv", bootstrap.RUNTIME)
    assert not bootstrap.is_current(stamp, {**wanted, "folder": "/elsewhere"})


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', '{"folder": "/x"}', '{"files": null}'])
def test_a_damaged_stamp_counts_as_none(project: Path, content: str) -> None:
    stamp = project / ".venv" / bootstrap.STAMP_NAME
    stamp.write_text(content)
    assert not bootstrap.is_current(stamp, bootstrap.wanted_stamp(project, project / ".venv", bootstrap.RUNTIME))


def test_another_torch_is_never_replaced(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(project, "torch-2.12.1+cu128.dist-info")
    monkeypatch.setattr(bootstrap, "_make_venv", lambda venv: None)
    with pytest.raises(bootstrap.BootstrapError, match=r"torch 2\.12\.1\+cu128.*tested with torch 2\.13\.0"):
        bootstrap.ensure_environment(project, bootstrap.RUNTIME)
    assert not (project / ".venv" / bootstrap.STAMP_NAME).exists()


def test_another_build_of_the_same_torch_is_welcome(project: Path) -> None:
    pretend_installed(project, "torch-2.13.0+cu130.dist-info")
    bootstrap._refuse_other_torch(project, project / ".venv")
    assert bootstrap.installed_version(project / ".venv", "torch") == "2.13.0+cu130"


def test_onnxruntime_is_not_put_beside_onnxruntime_gpu(project: Path) -> None:
    venv = project / ".venv"
    assert "onnxruntime==1.31.1" in bootstrap.effective_requirements(project, venv, bootstrap.RUNTIME)
    pretend_installed(project, "onnxruntime_gpu-1.31.1.dist-info")
    assert bootstrap.effective_requirements(project, venv, bootstrap.RUNTIME) == ["torch==2.13.0", "-e ."]


def test_the_stamp_is_gone_when_the_installation_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = stamp_for(project, bootstrap.RUNTIME)
    (project / "setup.py").write_text("# changed\n")
    monkeypatch.setattr(bootstrap, "_make_venv", lambda venv: None)  # leaves the environment without pip
    with pytest.raises(bootstrap.BootstrapError, match="No module named pip"):
        bootstrap.ensure_environment(project, bootstrap.RUNTIME)
    assert not stamp.exists()


def test_the_running_python_is_usable_and_a_missing_one_is_not() -> None:
    assert bootstrap.why_unusable([sys.executable]) is None
    assert "does not start" in str(bootstrap.why_unusable(["no-such-python-anywhere"]))


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("echo 3 9 True", "at least 3.11"),
        ("echo 3 12 False", "32-bit"),
        ("echo \"ModuleNotFoundError: No module named 'ensurepip'\" >&2; exit 1", "no ensurepip"),
    ],
)
def test_says_why_a_python_is_unusable(tmp_path: Path, answer: str, reason: str) -> None:
    fake = tmp_path / "python3"
    fake.write_text(f"#!/bin/sh\n{answer}\n")
    fake.chmod(0o755)
    assert reason in str(bootstrap.why_unusable([str(fake)]))


@pytest.mark.parametrize(
    ("line", "mend"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk space"),
        ("WARNING: Retrying after connection broken by NewConnectionError", "network"),
        ("ERROR: No matching distribution found for torch==2.13.0", "64-bit Python"),
        ("ERROR: something new", "report it"),
    ],
)
def test_tells_what_to_do_about_a_failed_installation(line: str, mend: str) -> None:
    assert mend in bootstrap.pip_mend(["Collecting torch", line])


def test_all_requirements_are_pinned_and_the_last_line_is_the_package_itself() -> None:
    for name in (*bootstrap.WITH_TESTS, "requirements-gpu.txt"):
        lines = [line for line in (bootstrap.ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
        assert len(bootstrap.read_pins(bootstrap.ROOT / name)) == len([line for line in lines if line != "-e ."])
    assert (bootstrap.ROOT / "requirements.txt").read_text().splitlines()[-1] == "-e ."


@pytest.mark.parametrize("tool", ["quickstart.py", "test.py", "doctor.py"])
def test_a_tool_answers_help_without_any_package(tool: str) -> None:
    command = [sys.executable, "-S", str(bootstrap.ROOT / "tools" / tool), "--help"]  # -S: no site-packages
    shown = subprocess.run(command, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stderr
    assert f"python tools/{tool}" in shown.stdout

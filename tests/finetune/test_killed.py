"""Every preparation script killed at random moments and started again leaves the files of one clean run."""

from __future__ import annotations

import random
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.finetune.steps import Step, contents, copy_photos, make_models, one_folder, photo_names

KILLS = 4  # of each script


def run_whole(step: Step) -> float:
    """Seconds that it took."""
    begun = time.monotonic()
    process = step.start()
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return time.monotonic() - begun


def run_killed(step: Step, seconds: float) -> bool:
    """Whether the script was still at work when it was killed."""
    process = step.start()
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return True
    assert process.returncode == 0, said
    return False


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("number", range(6))
def test_killed_and_started_again(photos: Path, tiny_models: dict[str, Path], tmp_path: Path, number: int) -> None:
    draws = random.Random(number)
    folder, work = copy_photos(photos, tmp_path / "data", photo_names(photos)), tmp_path / "work"
    for copy in range(3):  # more pictures, so that there is more to interrupt
        for name in photo_names(photos):
            shutil.copy(folder / name, folder / f"{copy} {name}")
    work.mkdir()
    models = make_models(tmp_path / "models", tiny_models["sd1"])
    steps = one_folder(folder, work, models)
    for step in steps[:number]:
        run_whole(step)
    step, before = steps[number], contents(folder, work)
    seconds = run_whole(step)
    clean = contents(folder, work)

    def begin_anew() -> None:
        for path in (*folder.iterdir(), *work.iterdir()):
            if f"{path.parent.name}/{path.name}" not in before:
                path.unlink()
        assert contents(folder, work) == before

    begin_anew()
    assert clean != before
    kills = 0
    for _ in range(KILLS):
        begun = time.monotonic()
        if run_killed(step, draws.uniform(0.4, 1.0) * seconds):
            kills += 1
        else:  # the machine is quieter now
            seconds = time.monotonic() - begun
            begin_anew()
    assert kills
    run_whole(step)
    assert contents(folder, work) == clean

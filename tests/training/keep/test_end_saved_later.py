"""A run whose end could not be saved, while the state of it was."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

import train_network
from library.core.errors import EXIT_USER_ERROR, run_script
from tests.training.keep.resumed import SAVING
from tests.training.runs import assert_same
from tests.training.styles import CAPTION_FILES, style_words

pytestmark = pytest.mark.usefixtures("fresh_accelerate")


def metadata_of(file: Path) -> dict[str, str]:
    with safe_open(str(file), "pt") as opened:
        return dict(opened.metadata())


def test_the_end_is_saved_by_the_run_that_goes_on(
    tiny_models: dict[str, Path],
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    out = tmp_path / "out"
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--learning_rate", "1e-3", *SAVING]
    words += ["--max_data_loader_n_workers", "0", "--output_dir", str(out), "--max_train_steps", "3"]
    words += style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")
    result, first = out / "last.safetensors", out / "at-step00000001.safetensors"

    def stand_in_the_way() -> None:
        while not first.exists():
            time.sleep(0.005)
        (result / "of others").mkdir(parents=True)

    thread = threading.Thread(target=stand_in_the_way, daemon=True)
    thread.start()
    assert run_script(lambda: train_network.main(words)) == EXIT_USER_ERROR
    told = capsys.readouterr().err
    assert "to save what was learned: the same command with --resume latest; nothing is trained again" in told
    assert "next: copy it" not in told and (out / "last-state").is_dir()
    shutil.rmtree(result)
    train_network.main([*words, "--resume", "latest"])
    assert "next: copy it" in capsys.readouterr().err
    of_last_update = out / "at-step00000003.safetensors"
    assert_same(load_file(str(result)), load_file(str(of_last_update)))
    differing = {key for key, value in metadata_of(result).items() if metadata_of(of_last_update).get(key) != value}
    assert differing <= {"ss_output_name", "modelspec.title"}, "its epoch and its times are those of the end"
    assert run_script(lambda: train_network.main([*words, "--resume", "latest"])) == EXIT_USER_ERROR
    assert "it is finished" in capsys.readouterr().err

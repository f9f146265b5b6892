"""What a run is refused for, or told, before its model loads; and what the environment may not change."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

import fine_tune
import train_db
import train_network
from library.core.errors import UserError
from library.training import reg_generation
from library.training.runtime import start_runtime
from tests.training.styles import CAPTION_FILES, style_words
from tests.training.test_matrix import rows

HYPER = ("--network_module", "networks.hypernetwork")


class Loaded(Exception):  # noqa: N818  # no error: the checks have let the run pass
    """Raised in the place of loading a model."""


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")


@pytest.fixture
def base(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> list[str]:
    """A good command line but for its length."""
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, "--output_dir", str(tmp_path / "out")]
    return [*words, "--max_data_loader_n_workers", "0"]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends every run where its model would be loaded."""

    def stop(*_: object) -> None:
        raise Loaded

    monkeypatch.setattr("library.training.assemble.load_models", stop)


def told(main: object, words: list[str]) -> dict[str, str]:
    """The problems of a command line by the place they name."""
    with pytest.raises(UserError) as caught:
        main(words)  # type: ignore[operator]
    return {problem.where: problem.what for problem in caught.value.problems}


def test_gradients_that_are_applied_at_once_cannot_be_exchanged(
    base: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = [*base, "--max_train_steps", "2", "--max_grad_norm", "0", "--fused_backward_pass"]
    found = told(train_network.main, words)
    assert "each would train alone" in found["--fused_backward_pass"]


@pytest.mark.usefixtures("no_loading")
def test_a_hypernetwork_leaves_the_text_encoder_alone_in_every_check(base: list[str]) -> None:
    words = [*base, "--max_train_steps", "1", *HYPER]
    found = told(train_network.main, [*words, "--text_encoder_lr", "1e-4"])
    assert found == {"--text_encoder_lr": "the text encoder does not train"}
    with pytest.raises(Loaded):
        train_network.main([*words, "--cache_text_encoder_outputs"])
    with pytest.raises(Loaded):
        fine_tune.main([*base, "--max_train_steps", "1", "--hypernetwork_module", HYPER[1], "--use_safetensors=false"])
    words = [*base, "--max_train_steps", "1", "--hypernetwork_module", HYPER[1], "--learning_rate_te", "1e-5"]
    assert told(fine_tune.main, words) == {"--text_encoder_lr": "the text encoder does not train"}


@pytest.mark.usefixtures("no_loading")
def test_a_schedule_that_does_not_fit_the_epochs_is_told_before_the_model_loads(base: list[str]) -> None:
    schedule = ["--lr_scheduler", "cosine", "--lr_warmup_steps", "100"]
    found = told(train_network.main, [*base, "--max_train_epochs", "1", *schedule])
    assert "--lr_warmup_steps" in " ".join(found)
    with pytest.raises(Loaded):
        train_network.main([*base, "--max_train_epochs", "100", *schedule])


def test_a_state_on_the_hub_that_nobody_names_is_told(base: list[str]) -> None:
    found = told(train_network.main, [*base, "--max_train_steps", "1", "--resume_from_huggingface"])
    assert found == {"--resume_from_huggingface": "no state is named"}


def test_masks_and_class_images_are_told_together(base: list[str]) -> None:
    words = [*base, "--max_train_steps", "1", "--masked_loss", "--generate_reg_images", "4"]
    found = told(train_network.main, words)
    assert {"--masked_loss", "--generate_reg_images"} <= {where.split(",")[0].split()[0] for where in found}


@pytest.mark.parametrize("flag", ["--text_encoder_lr", "--unet_lr"])
def test_a_rate_of_zero_is_answered_with_the_switches_for_it(base: list[str], flag: str) -> None:
    found = told(train_network.main, [*base, "--max_train_steps", "1", flag, "0"])
    assert "--network_train_unet_only" in found[flag] and "--stop_text_encoder_training 0" in found[flag]


def test_the_stop_of_the_text_encoder_is_told_and_logged(
    base: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*base, "--learning_rate", "1e-4", "--stop_text_encoder_training", "2", "--max_train_steps", "3"]
    train_db.main(words)
    log = rows(tmp_path / "out" / "last-log.jsonl")
    assert [row["lr/textencoder"] for row in log if "lr/textencoder" in row] == [1e-4, 1e-4, 0.0]
    assert [row["lr/unet"] for row in log if "lr/unet" in row] == [1e-4] * 3
    assert "at rate 0.0001, in the first 2 updates only" in " ".join(capsys.readouterr().err.split())


def test_one_update_is_judged_as_well(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    """Nothing of a transparent picture is learned, and a run of one update must not save that as a result."""
    (tmp_path / "data").mkdir()
    Image.new("RGBA", (64, 64), (200, 30, 30, 0)).save(tmp_path / "data" / "glass.png")
    (tmp_path / "data" / "glass.txt").write_text("glass", encoding="utf-8")
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--train_data_dir", str(tmp_path / "data")]
    words += ["--resolution", "64", "--output_dir", str(tmp_path / "out"), "--max_data_loader_n_workers", "0"]
    with pytest.raises(UserError, match="unet should train but received no gradient in the first 1 updates"):
        fine_tune.main([*words, "--max_train_steps", "1", "--masked_loss", "--alpha_mask"])
    assert not (tmp_path / "out" / "last.safetensors").exists()


@pytest.mark.usefixtures("fresh_accelerate")
def test_the_environment_does_not_divide_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    weight = torch.nn.Parameter(torch.ones(1))
    start_runtime("no").backward((3 * weight).sum())
    assert weight.grad is not None and float(weight.grad) == 3.0


def test_full_memory_while_class_images_are_made_is_a_sentence(
    base: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    (tmp_path / "reg" / "1_cat").mkdir(parents=True)
    monkeypatch.setattr(reg_generation, "generate", full)
    words = [*base, "--max_train_steps", "1", "--reg_data_dir", str(tmp_path / "reg"), "--generate_reg_images", "1"]
    found = told(train_network.main, words)
    assert "memory ran out while class images were made" in found["--generate_reg_images"]


def test_the_average_is_saved_even_where_numbers_do_not_fit(base: list[str], tmp_path: Path) -> None:
    words = [*base, "--max_train_steps", "1", "--ema", "--learning_rate", "1e5", "--max_grad_norm", "0"]
    with pytest.raises(UserError, match="saved in float32 instead") as caught:
        fine_tune.main([*words, "--save_precision", "fp16"])
    assert len(caught.value.problems) == 2
    assert (tmp_path / "out" / "last-ema.safetensors").exists()

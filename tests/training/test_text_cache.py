"""Cached text states in whole runs: the same bits as without, and what cannot be cached."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from library.core.errors import UserError
from library.models.tiny import make_tiny_model
from library.options.text import TextOptions
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from library.training.caching import caption_encoder
from tests.training.runs import Tensors, assert_same, largest_difference, run_here, run_process

IN_MEMORY, ON_DISK = "--cache_text_encoder_outputs", "--cache_text_encoder_outputs_to_disk"
UNET_ONLY = ["--network_train_unet_only", "--train_batch_size", "2", "--max_train_steps", "3"]


@pytest.fixture
def pictures(photos: Path, tmp_path: Path) -> Path:
    """Four photographs, two of which have the same caption, one a caption of more than 75 tokens."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for stem in ("cat", "coins", "rocket", "pagoda"):
        for path in photos.glob(f"{stem}.*"):
            shutil.copy(path, folder)
    shutil.copy(folder / "cat.txt", folder / "coins.txt")
    (folder / "rocket.txt").write_text("a rocket on its (ramp:1.3), " * 20, encoding="utf-8")
    return folder


def words_for(pictures: Path) -> list[str]:
    return ["--train_data_dir", str(pictures), "--resolution", "64", *UNET_ONLY]


def cache_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "text states on disk: " in line)
    return line[line.index("text states on disk: ") :]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sd1", []),
        ("sd1", ["--max_token_length", "150", "--weighted_captions", "--clip_skip", "2"]),
        ("sd2_v", ["--v_parameterization"]),
    ],
    ids=["plain", "long, weighted, skipped", "v-prediction"],
)
def test_caches_change_no_byte(
    tiny_models: dict[str, Path],
    pictures: Path,
    tmp_path: Path,
    kind: str,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(name: str, *more: str) -> Tensors:
        return run_here(tiny_models[kind], words_for(pictures), tmp_path / name, *words, *more)

    plain = run("plain")
    assert_same(run("memory", IN_MEMORY, "--cache_latents"), plain)
    capsys.readouterr()
    assert_same(run("disk", ON_DISK, "--max_data_loader_n_workers", "2"), plain)
    assert cache_line(capsys) == "text states on disk: 0 reused, 4 written (4 not there yet)"
    assert_same(run("again", ON_DISK, "--seed", "42"), plain)
    assert cache_line(capsys) == "text states on disk: 4 reused, 0 written"
    assert {path.name for path in pictures.glob("*.npz")} == {
        f"{stem}.te.npz" for stem in ("cat", "coins", "rocket", "pagoda")
    }


def test_what_decides_the_states_is_seen(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = words_for(pictures)
    first = run_here(tiny_models["sd1"], data, tmp_path / "first", ON_DISK)
    capsys.readouterr()
    (pictures / "cat.txt").write_text("a lynx", encoding="utf-8")
    other = run_here(tiny_models["sd1"], data, tmp_path / "caption", ON_DISK)
    assert cache_line(capsys).endswith("1 written (1 caption changed)")
    assert largest_difference(first, other) > 0
    run_here(tiny_models["sd1"], data, tmp_path / "skip", ON_DISK, "--clip_skip", "2")
    assert cache_line(capsys).endswith("4 written (4 other precision or way to read captions)")
    run_here(tiny_models["sd2"], data, tmp_path / "model", ON_DISK, "--v_parameterization", "false")
    assert cache_line(capsys).endswith("4 written (4 other text encoder)")


@pytest.mark.slow
def test_smaller_precision_changes_no_byte(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    """In processes: Accelerate keeps its precision for life."""
    words = [*words_for(pictures), "--mixed_precision", "bf16"]
    plain = run_process(tiny_models["sd1"], words, tmp_path / "plain")
    for name, flag in (("memory", IN_MEMORY), ("disk", ON_DISK)):
        assert_same(run_process(tiny_models["sd1"], words, tmp_path / name, flag), plain)


@pytest.mark.slow
def test_two_processes_share_the_captions(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    words = [IN_MEMORY, "--train_batch_size", "1"]
    two = run_process(tiny_models["sd1"], words_for(pictures), tmp_path / "two", *words, processes=2)
    words += ["--gradient_accumulation_steps", "2"]
    one = run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "one", *words)
    assert largest_difference(one, two) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_captions_alone_have_the_states_they_have_in_a_batch(dtype: torch.dtype) -> None:
    """What the equality above rests on, at the width of a real text encoder's rows (77)."""
    text, model = TextOptions(max_token_length=150), make_tiny_model("sd1", seed=0)
    tokenizer, is_half = CaptionTokenizer("sd1", text), dtype != torch.float32

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_half)

    encode = caption_encoder(text, tokenizer, model.text_encoder, autocast)
    captions = ["a cat", "a dog, " * 40, "", "a cat"]
    with torch.no_grad(), autocast():
        together = CaptionEncoder(text)(model.text_encoder, tokenizer(captions)[0], None).float()
    assert torch.equal(torch.stack([encode(caption) for caption in captions]), together)


def test_a_text_encoder_that_learns_is_not_cached(tiny_models: dict[str, Path], pictures: Path, tmp_path: Path) -> None:
    data = ["--train_data_dir", str(pictures), "--resolution", "64", "--max_train_steps", "1"]
    with pytest.raises(UserError, match="the network changes what the text encoder makes of captions") as error:
        run_here(tiny_models["sd1"], data, tmp_path, IN_MEMORY)
    assert "--network_train_unet_only" in str(error.value)

"""The options of noise and loss through the real script: each changes what is learned, and mistakes are told first."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from library.core.errors import UserError
from tests.data.masked_world import save_mask
from tests.training.runs import Tensors, assert_same, largest_difference, run_here

STEPS = ["--resolution", "64", "--min_bucket_reso", "64", "--max_train_steps", "2", "--train_batch_size", "2"]
NAMES = ("cat", "coins", "rocket")


def pictures_in(photos: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for path in photos.iterdir():
        if path.stem in NAMES:
            shutil.copy(path, folder)
    return folder


def words_for(folder: Path, kind: str = "sd1") -> list[str]:
    velocity = ["--v_parameterization"] if kind == "sd2_v" else []
    return ["--train_data_dir", str(folder), *STEPS, *velocity]


@pytest.fixture(scope="module")
def pictures(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures_in(photos, tmp_path_factory.mktemp("objective") / "pictures")


@pytest.fixture(scope="module")
def plain(
    tiny_models: dict[str, Path], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Tensors]:
    """The run without any of the options, by model."""
    folder = tmp_path_factory.mktemp("plain")
    return cache(lambda kind: run_here(tiny_models[kind], words_for(pictures, kind), folder / kind))


QUICK = ["--noise_offset 0.3", "--min_snr_gamma 1"]  # one that is drawn with the data, one in the objective
ALL = [
    ("sd1", "--noise_offset 0.3 --noise_offset_random_strength"),
    ("sd1", "--noise_offset 0.3 --adaptive_noise_scale 0.3"),
    ("sd1", "--multires_noise_iterations 6"),
    ("sd1", "--multires_noise_iterations 6 --multires_noise_discount 0.8"),
    ("sd1", "--ip_noise_gamma 0.3"),
    ("sd1", "--ip_noise_gamma 0.3 --ip_noise_gamma_random_strength"),
    ("sd1", "--debiased_estimation_loss"),
    ("sd1", "--v_pred_like_loss 0.5"),
    ("sd1", "--loss_type l1"),
    ("sd1", "--loss_type huber"),
    ("sd1", "--loss_type huber --huber_c 0.4"),
    ("sd1", "--loss_type huber --huber_scale 0.3"),
    ("sd1", "--loss_type smooth_l1 --huber_schedule constant"),
    ("sd1", "--loss_type smooth_l1 --huber_schedule exponential"),
    ("sd1", "--min_timestep 900"),
    ("sd1", "--max_timestep 100"),
    ("sd2_v", "--zero_terminal_snr"),
    ("sd2_v", "--scale_v_pred_loss_like_noise_pred"),
]


@pytest.mark.parametrize(
    ("kind", "words"),
    [*(("sd1", words) for words in QUICK), *(pytest.param(*case, marks=pytest.mark.slow) for case in ALL)],
)
def test_every_option_changes_what_is_learned(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, plain: Callable[[str], Tensors], kind: str, words: str
) -> None:
    """Beside the run without the last option of each line, too."""
    asked = words.split()
    tensors = run_here(tiny_models[kind], words_for(pictures, kind), tmp_path / "out", *asked)
    assert largest_difference(tensors, plain(kind)) > 1e-7
    last = max(place for place, word in enumerate(asked) if word.startswith("--"))
    if last:
        without = run_here(tiny_models[kind], words_for(pictures, kind), tmp_path / "without", *asked[:last])
        assert largest_difference(tensors, without) > 1e-7


def test_everything_at_once_is_the_same_with_every_cache_and_worker_count(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path
) -> None:
    """Noise of every kind, masks and flips: neither a cache nor loader processes change a bit; masks change all."""
    folder = pictures_in(photos, tmp_path / "pictures")
    for name in NAMES:
        save_mask(tmp_path / "masks" / f"{name}.png", (80, 60))
    (tmp_path / "data.toml").write_text(
        f"[[datasets]]\n[[datasets.subsets]]\nimage_dir = '{folder}'\nconditioning_data_dir = '{tmp_path / 'masks'}'\n",
        encoding="utf-8",
    )
    data = ["--dataset_config", str(tmp_path / "data.toml"), *STEPS, "--flip_aug", "--masked_loss"]
    options = (
        "--noise_offset 0.1 --adaptive_noise_scale 0.1 --multires_noise_iterations 4 --ip_noise_gamma 0.1"
        " --min_snr_gamma 5 --loss_type huber"
    )
    model, words = tiny_models["sd1"], options.split()
    expected = run_here(model, data, tmp_path / "plain", *words)
    assert_same(run_here(model, data, tmp_path / "memory", *words, "--cache_latents"), expected)
    for run in ("filled", "read"):
        found = run_here(
            model, data, tmp_path / run, *words, "--cache_latents_to_disk", "--max_data_loader_n_workers", "1"
        )
        assert_same(found, expected)
    unmasked = run_here(model, [*words_for(folder), "--flip_aug"], tmp_path / "unmasked", *words)
    assert largest_difference(unmasked, expected) > 1e-6


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--masked_loss", "no subset has masks"),
        ("--zero_terminal_snr", "nothing but noise to predict it from"),
        ("--adaptive_noise_scale 0.1", "there is none"),
        ("--min_timestep 10 --max_timestep 10", "no diffusion time is left"),
        ("--huber_c 0.2", "the loss l2 has no threshold"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(
    tiny_models: dict[str, Path], pictures: Path, tmp_path: Path, words: str, told: str
) -> None:
    with pytest.raises(UserError) as caught:
        run_here(tiny_models["sd1"], words_for(pictures), tmp_path / "out", *words.split())
    (problem,) = caught.value.problems
    assert told in problem.what and not (tmp_path / "out").exists()

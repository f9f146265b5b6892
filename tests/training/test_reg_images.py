"""--generate_reg_images: what is missing and in which shapes, what is refused, and that it trains like any picture."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

import train_db
import train_network
from library.core.errors import Problems, UserError
from library.core.sizes import Size
from library.models.files.mapped import give_own_memory
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.options.parse import parse_options
from library.options.reg_images import RegImageOptions, check_reg_image_options
from library.options.scripts import SCRIPTS
from library.options.text import TextOptions
from library.preview.generate import PromptReader, generate
from library.preview.prompts import SamplePrompt
from library.training.checks.preflight import check_network_run
from library.training.painting import noise_schedule
from library.training.reg_generation import make_reg_images
from library.training.reg_images import needs_reg_images, spread
from library.training.run import Run
from tests.data.data_helpers import save_picture
from tests.training.runs import ROOT, assert_same, environment, run_script_in_processes

BUCKETS = ["--enable_bucket", "--min_bucket_reso", "32", "--max_bucket_reso", "128", "--bucket_reso_steps", "32"]
QUICK = ["--reg_image_steps", "2"]

Words = Callable[..., list[str]]


@pytest.fixture
def words(tmp_path: Path, tiny_models: dict[str, Path]) -> Words:
    """A command line that learns four pictures of three shapes beside an empty folder `1_cat`."""
    for number, size in enumerate([(64, 64), (66, 64), (128, 32), (30, 120)]):
        save_picture(tmp_path / "train" / "2_shs cat" / f"{number}.png", size, number)
    (tmp_path / "reg" / "1_cat").mkdir(parents=True)

    def of(wanted: int | None, *more: str, out: str = "out", script: str = "train_network.py") -> list[str]:
        asked = [] if wanted is None else ["--generate_reg_images", str(wanted), *QUICK]
        network = ["--network_module", "networks.lora"] if script == "train_network.py" else []
        return [
            *("--pretrained_model_name_or_path", str(tiny_models["sd1"]), "--output_dir", str(tmp_path / out)),
            *("--train_data_dir", str(tmp_path / "train"), "--reg_data_dir", str(tmp_path / "reg")),
            *("--resolution", "64", *BUCKETS, "--max_train_steps", "3", "--learning_rate", "1e-3"),
            *("--max_data_loader_n_workers", "0", *network, *asked, *more),
        ]

    return of


def checked(words: Sequence[str]) -> Run:
    entry = SCRIPTS["train_network.py"]
    return check_network_run(parse_options("train_network.py", entry.description, entry.groups, words))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def problems_of(words: Sequence[str]) -> str:
    with pytest.raises(UserError) as error:
        checked(words)
    return str(error.value)


def dataset_file(root: Path, reg: str) -> list[str]:
    """Words for a dataset file: the training pictures of `words`, and a subset of regularisation pictures."""
    file = root / "set.toml"
    file.write_text(
        f"[general]\nresolution = 64\n[[datasets]]\n"
        f"[[datasets.subsets]]\nimage_dir = '{root / 'train' / '2_shs cat'}'\nclass_tokens = 'shs cat'\n"
        f"[[datasets.subsets]]\nis_reg = true\n{reg}\n",
        encoding="utf-8",
    )
    return ["--dataset_config", str(file)]


def with_file(words: list[str], file: list[str]) -> list[str]:
    """The words with a dataset file in place of the folders."""
    start = words.index("--train_data_dir")
    return [*words[:start], *file, *words[start + 4 :]]


def without_reg(words: list[str]) -> list[str]:
    start = words.index("--reg_data_dir")
    return [*words[:start], *words[start + 2 :]]


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train_db.py", "train_network.py"])
def test_a_run_that_makes_pictures_is_the_one_that_finds_them(
    words: Words, tmp_path: Path, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main = {"train_db.py": train_db.main, "train_network.py": train_network.main}[script]
    reg = tmp_path / "reg" / "1_cat"
    main(words(3, out="made", script=script))
    told = capsys.readouterr().err
    assert f'class images: 3 of "cat" will be made in {reg}' in told
    assert "class images: 3 made, " in told
    made = bytes_of(reg)
    assert list(made) == [f"generated_42_0000{number}.png" for number in range(3)]
    main(words(None, out="found", script=script))
    assert bytes_of(reg) == made
    assert "will be made" not in capsys.readouterr().err
    results = [load_file(str(tmp_path / out / "last.safetensors")) for out in ("made", "found")]
    assert_same(*results)


def test_a_full_folder_is_trained_as_it_is(words: Words, tmp_path: Path) -> None:
    reg = tmp_path / "reg" / "1_cat"
    for number in range(2):
        save_picture(reg / f"{number}.png", seed=20 + number)
    train_network.main(words(2, out="full"))
    train_network.main(words(None, out="plain"))
    assert len(list(reg.iterdir())) == 2
    assert_same(*(load_file(str(tmp_path / out / "last.safetensors")) for out in ("full", "plain")))


def test_debug_dataset_makes_nothing(words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    train_network.main(words(3, "--debug_dataset"))
    assert (tmp_path / "out" / "dataset_report.html").is_file()
    assert not list((tmp_path / "reg" / "1_cat").iterdir())


# --- what is made -----------------------------------------------------------------------------------------------------


def test_pictures_are_what_the_base_model_makes_of_the_class(words: Words, tiny_models: dict[str, Path]) -> None:
    """Each option counts, and the file says how it was made."""
    more = ["--reg_image_scale", "3", "--reg_image_negative_prompt", "snow", "--seed", "7", "--clip_skip", "2"]
    run = checked(words(2, *more))
    make_reg_images(run)
    models = load_stable_diffusion(identify(tiny_models["sd1"]), "epsilon")
    for part in (models.unet, models.text_encoder, models.vae):
        give_own_memory(part)  # mapped weights round differently
    reader = PromptReader.of("sd1", TextOptions(clip_skip=2))
    for image in needs_reg_images(run):
        assert image.path.name.startswith("generated_7_")
        request = SamplePrompt("cat", "snow", image.size, image.seed, scale=3.0, steps=2)
        expected = generate(models, reader, noise_schedule("epsilon"), request)
        with Image.open(image.path) as picture:
            assert np.array_equal(np.asarray(picture), expected)
            texts = {name: str(text) for name, text in picture.text.items()}  # type: ignore[attr-defined]
        assert texts["prompt"] == "cat" and texts["negative_prompt"] == "snow"
        assert (texts["seed"], texts["steps"], texts["scale"]) == (str(image.seed), "2", "3")
    assert len({bytes(path.read_bytes()) for path in (image.path for image in needs_reg_images(run))}) == 2


def test_what_is_missing_is_made_again_to_the_bit(words: Words, tmp_path: Path) -> None:
    reg = tmp_path / "reg" / "1_cat"
    make_reg_images(checked(words(4)))
    made = bytes_of(reg)
    for number in (1, 3):
        (reg / f"generated_42_0000{number}.png").unlink()
    (reg / ".tmp-00000000-00000000-1.png").write_bytes(b"of a run that was killed")
    os.utime(reg / ".tmp-00000000-00000000-1.png", (0, 0))
    untouched = (reg / "generated_42_00000.png").stat().st_mtime_ns
    make_reg_images(checked(words(4)))
    assert bytes_of(reg) == made
    assert (reg / "generated_42_00000.png").stat().st_mtime_ns == untouched


def test_v_prediction_is_sampled_as_such(words: Words, tmp_path: Path, tiny_models: dict[str, Path]) -> None:
    model = str(tiny_models["sd2_v"])
    found = {}
    for flag in ("--v_parameterization", None):
        answer = ["--v2", *([flag] if flag else [])]
        run = checked([*words(1, *answer), "--pretrained_model_name_or_path", model])
        assert run.base.prediction_type == ("v_prediction" if flag else "epsilon")
        make_reg_images(run)
        found[flag] = bytes_of(tmp_path / "reg" / "1_cat")
        shutil.rmtree(tmp_path / "reg" / "1_cat")
        (tmp_path / "reg" / "1_cat").mkdir()
    assert found["--v_parameterization"] != found[None]


# --- what is missing --------------------------------------------------------------------------------------------------


def test_sizes_follow_the_use_of_the_buckets(words: Words, tmp_path: Path) -> None:
    images = needs_reg_images(checked(words(12)))
    assert Counter(image.size for image in images) == {Size(64, 64): 6, Size(128, 32): 3, Size(32, 128): 3}
    (tmp_path / "train" / "2_shs cat").rename(tmp_path / "train" / "1_shs cat")
    save_picture(tmp_path / "train" / "4_shs cat" / "wide.png", (128, 32))
    images = needs_reg_images(checked(words(8)))  # uses in an epoch: 2 square, 1 + 4 wide, 1 tall
    assert Counter(image.size for image in images) == {Size(64, 64): 2, Size(128, 32): 5, Size(32, 128): 1}
    plain = [word for word in words(3) if word not in BUCKETS]
    assert {image.size for image in needs_reg_images(checked(plain))} == {Size(64, 64)}


def test_shares_are_kept_from_the_first_pictures_on() -> None:
    sizes, uses = [Size(64, 64), Size(128, 32), Size(32, 128)], [Fraction(5), Fraction(5, 2), Fraction(1, 2)]
    found = list(islice(spread(sizes, uses), 1600))
    for number in (1, 2, 8, 16, 17, 160, 1600):
        counts = Counter(found[:number])
        for size, use in zip(sizes, uses, strict=True):
            assert abs(counts[size] - float(use / 8) * number) <= 1
    assert Counter(found) == {Size(64, 64): 1000, Size(128, 32): 500, Size(32, 128): 100}


def test_pictures_that_are_there_count(words: Words, tmp_path: Path) -> None:
    reg = tmp_path / "reg" / "1_cat"

    def numbers(wanted: int) -> list[str]:
        return [image.path.name[-9:-4] for image in needs_reg_images(checked(words(wanted)))]

    assert numbers(3) == ["00000", "00001", "00002"]
    save_picture(reg / "my own.jpg")
    assert numbers(3) == ["00000", "00001"]
    save_picture(reg / "generated_1_00000.png")  # of another seed
    assert numbers(3) == ["00000"]
    save_picture(reg / "generated_42_00002.png")
    assert numbers(3) == [] and numbers(4) == ["00000"] and numbers(6) == ["00000", "00001", "00003"]
    # what a longer list begins with is the shorter one
    sizes = {n: {i.path.name: i.size for i in needs_reg_images(checked(words(n)))} for n in (6, 9)}
    assert sizes[6].items() <= sizes[9].items()


def test_folders_of_one_class_get_pictures_of_their_own(words: Words, tmp_path: Path) -> None:
    for name in ("2_cat", "1_tabby"):
        (tmp_path / "reg" / name).mkdir()
    images = needs_reg_images(checked(words(2)))
    assert [(image.path.parent.name, image.prompt) for image in images] == [
        *[("1_cat", "cat")] * 2,
        *[("1_tabby", "tabby")] * 2,
        *[("2_cat", "cat")] * 2,
    ]
    assert len({image.seed for image in images}) == 6
    for place in ("a", "b"):
        (tmp_path / place / "cats").mkdir(parents=True)
    reg = f"image_dir = '{tmp_path}/a/cats'\nclass_tokens = 'cat'\n[[datasets.subsets]]\nis_reg = true\n"
    reg += f"image_dir = '{tmp_path}/b/cats'\nclass_tokens = 'cat'"
    images = needs_reg_images(checked(with_file(words(2), dataset_file(tmp_path, reg))))
    assert len({image.path for image in images}) == len({image.seed for image in images}) == 4


def test_a_folder_of_two_datasets_is_filled_once_with_the_shapes_of_both(words: Words, tmp_path: Path) -> None:
    folder = tmp_path / "reg" / "1_cat"
    subset = f"image_dir = '{folder}'\nclass_tokens = 'cat'\nis_reg = true"
    train = f"[[datasets.subsets]]\nimage_dir = '{tmp_path / 'train' / '2_shs cat'}'\nclass_tokens = 'shs cat'"
    reg = f"image_dir = '{folder}'\nclass_tokens = 'cat'\n[[datasets]]\nresolution = 128\n{train}\n"
    run = checked(with_file(words(4), dataset_file(tmp_path, f"{reg}[[datasets.subsets]]\n{subset}")))
    images = needs_reg_images(run)
    assert len({image.path for image in images}) == 4
    # the bucket options of the command line count here as well
    assert {image.size.area > 64 * 64 for image in images} == {True, False}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_empty_folder_is_fine_only_where_it_will_be_filled(words: Words, tmp_path: Path) -> None:
    assert "the folder is empty" in problems_of(words(None))
    save_picture(tmp_path / "train" / "2_shs cat" / "broken.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        checked(words(3))
    assert [Path(problem.where).name for problem in error.value.problems] == ["broken.png"]
    shutil.rmtree(tmp_path / "reg" / "1_cat")
    assert "neither pictures nor folders named N_class" in problems_of(words(3))


def test_pictures_are_not_put_into_folders_that_do_not_exist(words: Words, tmp_path: Path) -> None:
    reg = f"image_dir = '{tmp_path / 'reg' / '1_catt'}'\nclass_tokens = 'cat'"
    assert "the folder does not exist" in problems_of(with_file(words(3), dataset_file(tmp_path, reg)))
    save_picture(tmp_path / "reg" / "1_cat" / "below" / "a.png")
    assert "no pictures directly in this folder" in problems_of(words(3))


def test_without_regularisation_there_is_nothing_to_fill(words: Words) -> None:
    assert "there is no folder of regularisation pictures to fill" in problems_of(without_reg(words(3)))


@pytest.mark.parametrize(
    ("reg", "expected"),
    [
        ("image_dir = 'REG'", "nothing says of what class"),
        ("image_dir = 'REG'\nclass_tokens = 'cat'\nalpha_mask = true", "generated pictures have no transparency"),
        ("image_dir = 'REG'\nclass_tokens = 'cat'\nface_crop_aug_range = [2.0, 4.0]", "where faces are"),
        ("image_dir = 'REG'\nclass_tokens = 'cat'\nconditioning_data_dir = 'TRAIN'", "have no masks there"),
        ("image_dir = 'REG'\nclass_tokens = 'cat'\ncaption_extension = '.tags'", "have no caption files"),
        ("image_dir = 'TRAIN'\nclass_tokens = 'cat'", "would be taken for such"),
        ("metadata_file = 'META'\nimage_dir = 'REG'\nclass_tokens = 'cat'", "none can be added"),
        (
            "image_dir = 'REG'\nclass_tokens = 'cat'\n[[datasets.subsets]]\nis_reg = true\nimage_dir = 'REG'\n"
            "class_tokens = 'tabby'",
            "it has two class tokens, 'cat' and 'tabby'",
        ),
    ],
)
def test_folders_that_cannot_be_filled_are_told_before_a_model_loads(
    words: Words, tmp_path: Path, reg: str, expected: str
) -> None:
    (tmp_path / "meta.json").write_text("{}", encoding="utf-8")
    places = {
        "REG": tmp_path / "reg" / "1_cat",
        "TRAIN": tmp_path / "train" / "2_shs cat",
        "META": tmp_path / "meta.json",
    }
    for name, path in places.items():
        reg = reg.replace(f"'{name}'", f"'{path}'")
    assert expected in problems_of(with_file(words(9), dataset_file(tmp_path, reg)))


def test_a_full_folder_needs_no_class_tokens(words: Words, tmp_path: Path) -> None:
    """With captions of its own nothing is asked of it, for nothing is to be made."""
    folder = tmp_path / "reg" / "1_cat"
    for number in range(2):
        save_picture(folder / f"{number}.png").with_suffix(".txt").write_text("a cat", encoding="utf-8")
    file = dataset_file(tmp_path, f"image_dir = '{folder}'")
    assert needs_reg_images(checked(with_file(words(2), file))) == ()
    assert "nothing says of what class" in problems_of(with_file(words(3), file))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (RegImageOptions(reg_image_steps=20), "no class images are generated"),
        (RegImageOptions(reg_image_negative_prompt="snow"), "--reg_image_negative_prompt"),
        (RegImageOptions(generate_reg_images=5, reg_image_steps=20), None),
        (RegImageOptions(generate_reg_images=5, reg_image_scale=1.0), None),
        (RegImageOptions(generate_reg_images=5, reg_image_scale=1.0, reg_image_negative_prompt="a"), "no effect"),
    ],
)
def test_options_that_would_do_nothing_are_told(options: RegImageOptions, expected: str | None) -> None:
    problems = Problems()
    check_reg_image_options(options, problems)
    assert [expected in str(problem) for problem in problems if expected] == ([True] if expected else [])
    assert bool(problems) == (expected is not None)


def test_more_steps_than_samplers_can_take_are_refused(words: Words) -> None:
    assert "--reg_image_steps" in problems_of(words(3, "--reg_image_steps", "501"))


# --- processes --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_processes_share_the_work_and_make_the_same_pictures(words: Words, tmp_path: Path) -> None:
    reg = tmp_path / "reg" / "1_cat"
    make_reg_images(checked(words(3)))
    alone = bytes_of(reg)
    for path in reg.iterdir():
        path.unlink()
    run_script_in_processes("train_network.py", words(3, out="made"), processes=2)
    assert bytes_of(reg) == alone
    run_script_in_processes("train_network.py", words(None, out="found"), processes=2)
    results = [load_file(str(tmp_path / out / "last.safetensors")) for out in ("made", "found")]
    assert_same(*results)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL], ids=lambda sent: sent.name)
def test_a_run_that_is_stopped_leaves_whole_pictures_and_goes_on(
    words: Words, tmp_path: Path, sent: signal.Signals
) -> None:
    reg = tmp_path / "reg" / "1_cat"
    command = [sys.executable, "train_network.py", *words(60)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    while len(list(reg.glob("generated_*"))) < 3 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(sent)
    _, told = process.communicate()
    assert process.returncode == (130 if sent is signal.SIGINT else -sent), told
    left = bytes_of(reg)
    whole = {name: data for name, data in left.items() if not name.startswith(".")}
    assert 3 <= len(whole) < 60
    for name in whole:
        with Image.open(reg / name) as picture:
            picture.load()
    missing = needs_reg_images(checked(words(60)))
    assert {image.path.name for image in missing} | set(whole) == {f"generated_42_{n:05d}.png" for n in range(60)}

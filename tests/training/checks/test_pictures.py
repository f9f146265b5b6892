"""The checks of a run's pictures: what was asked of them must be possible, and is told before a model loads."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size, Span
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.text import TextOptions
from library.training.checks.pictures import Pictures, check_pictures
from tests.data.data_helpers import save_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        save_picture(tmp_path / "train" / "2_shs dog" / f"{number}.png", (80, 64), seed=number)
    return tmp_path / "train"


def check(
    folder: Path, caching: CachingOptions | None = None, max_train_steps: int | None = None, **options: object
) -> Pictures:
    data = DataOptions(train_data_dir=str(folder), resolution=Size(64, 64), **options)  # type: ignore[arg-type]
    return check_pictures(data, caching or CachingOptions(), TextOptions(), max_train_steps)


def described(root: Path, text: str, **options: object) -> tuple[str, ...]:
    """The notes about the pictures of a dataset file; FOLDER stands for `root`."""
    file = root / "set.toml"
    file.write_text(f"[general]\nresolution = 64\n{text}".replace("FOLDER", root.as_posix()), encoding="utf-8")
    data = DataOptions(dataset_config=str(file), **options)  # type: ignore[arg-type]
    return check_pictures(data, CachingOptions(), TextOptions()).index.notes


@pytest.mark.parametrize("cache", [{"cache_latents": True}, {"cache_latents_to_disk": True}])
@pytest.mark.parametrize("change", [{"color_aug": True}, {"random_crop": True}])
def test_caches_hold_fixed_looks_only(folder: Path, cache: dict[str, bool], change: dict[str, bool]) -> None:
    caching = CachingOptions(**cache)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="drawn anew at each use") as error:
        check(folder, caching, **change)
    assert "--augmentation_variants 4" in str(error.value)
    check(folder, caching, **change, augmentation_variants=3)
    check(folder, **change)
    check(folder, caching, flip_aug=True)


def test_kept_text_states_need_captions_that_stay(folder: Path) -> None:
    for caching in (
        CachingOptions(cache_text_encoder_outputs=True),
        CachingOptions(cache_text_encoder_outputs_to_disk=True),
    ):
        with pytest.raises(UserError, match="captions change between uses there") as error:
            check(folder, caching, shuffle_caption=True)
        assert "2_shs dog" in str(error.value)
        check(folder, caching)


def test_masks_need_transparency_somewhere(folder: Path) -> None:
    with pytest.raises(UserError, match="no picture there has transparency"):
        check(folder, alpha_mask=True)
    Image.new("RGBA", (64, 64), (9, 9, 9, 40)).save(folder / "2_shs dog" / "see_through.png")
    check(folder, alpha_mask=True)


def test_faces_are_looked_for_in_names(folder: Path) -> None:
    span = Span(2.0, 4.0)
    with pytest.raises(UserError, match="no file name there ends in _X_Y_WIDTH_HEIGHT"):
        check(folder, face_crop_aug_range=span)
    save_picture(folder / "2_shs dog" / "mira_30_30_10_12.png", (80, 64))
    (note,) = [note for note in check(folder, face_crop_aug_range=span).index.notes if "face" in note]
    assert "3 pictures tell of no face" in note and "0.png" in note


def test_bad_pictures_stop_or_are_left_out(folder: Path) -> None:
    (folder / "2_shs dog" / "torn.png").write_bytes((folder / "2_shs dog" / "0.png").read_bytes()[:60])
    (folder / "2_shs dog" / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError) as error:
        check(folder)
    assert "torn.png" in str(error.value) and "page.jpg" in str(error.value)
    found = check(folder, bad_images="skip")
    assert len(found.index) == 3
    told = "\n".join(found.index.notes)
    assert "torn.png" in told and "page.jpg" in told and "2 " in told


def test_everything_wrong_is_told_at_once(folder: Path) -> None:
    (folder / "2_shs dog" / "page.jpg").write_text("<html>not found</html>")
    with pytest.raises(UserError) as error:
        check(folder, CachingOptions(cache_latents=True), random_crop=True, token_warmup_min=2)
    text = str(error.value)
    assert "page.jpg" in text and "drawn anew" in text and "token_warmup_min" in text


def caption_all(folder: Path, *captions: str) -> None:
    """Gives the three pictures captions, in turn."""
    for number in range(3):
        text = captions[number % len(captions)]
        (folder / "2_shs dog" / f"{number}.txt").write_text(text, encoding="utf-8")


def test_a_face_outside_its_picture_is_told(folder: Path) -> None:
    for name in ("far_300_30_10_12", "large_30_30_10_120", "fine_80_64_10_12"):
        save_picture(folder / "2_shs dog" / f"{name}.png", (80, 64))
    notes = check(folder, face_crop_aug_range=Span(2.0, 4.0)).index.notes
    (note,) = [note for note in notes if "a face that is not inside" in note]
    assert "2 pictures tell of a face" in note and "far_300" in note and "large_30" in note and "fine" not in note


@pytest.mark.parametrize(("key", "mark"), [("keep_tokens_separator", "|||"), ("secondary_separator", ";;;")])
@pytest.mark.parametrize("moves", [True, False])
def test_a_mark_must_be_in_some_caption(folder: Path, key: str, mark: str, moves: bool) -> None:
    options = {key: mark, "shuffle_caption": moves}
    caption_all(folder, "a, b, c", "a @@ b")
    with pytest.raises(UserError) as error:
        check(folder, **options)
    (problem,) = error.value.problems
    assert problem.what.startswith(f"no caption has the mark {mark!r} of {key}") and "2_shs dog" in problem.where
    check(folder, **options, caption_suffix=f"{mark} end")
    caption_all(folder, "a, b, c", "a, b", f"a {mark} b, c")
    check(folder, **options)
    caption_all(folder, "a, b, c", f"a, b\nc {mark} d")  # of which the first line is trained
    with pytest.raises(UserError, match="no caption has the mark"):
        check(folder, **options)
    check(folder, **options, enable_wildcard=True)


SUBSETS = """
[[datasets]]
  [[datasets.subsets]]
  image_dir = 'FOLDER/first'
  class_tokens = "a, b"
  [[datasets.subsets]]
  image_dir = 'FOLDER/second'
  class_tokens = "MARKED, b"
  [[datasets.subsets]]
  image_dir = 'FOLDER/reg'
  class_tokens = "REG"
  is_reg = true
"""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name in ("first", "second", "reg"):
        save_picture(tmp_path / "sets" / name / "a.png")
    return tmp_path / "sets"


def test_a_mark_may_be_missing_in_some_folders_and_regularisation_does_not_count(three: Path) -> None:
    mark = 'keep_tokens_separator = "|||"'
    described(three, mark + SUBSETS.replace("MARKED", "x ||| y"))
    with pytest.raises(UserError) as error:
        described(three, mark + SUBSETS.replace("REG", "x ||| y"))
    (problem,) = error.value.problems
    assert problem.where == f"{three / 'first'}, {three / 'second'}"
    of_reg = f"{SUBSETS}  {mark}\n"
    assert described(three, of_reg) == ()


def test_marks_that_differ_are_each_looked_for(three: Path) -> None:
    text = SUBSETS.replace("MARKED", "x ||| y").replace('b"', 'b"\nkeep_tokens_separator = "@@"', 1)
    with pytest.raises(UserError) as error:
        described(three, 'keep_tokens_separator = "|||"' + text)
    assert [problem.where for problem in error.value.problems] == [str(three / "first")]


@pytest.mark.parametrize(
    ("options", "idle", "works", "told"),
    [
        ({"shuffle_caption": True}, "one tag", "two, tags", "shuffle_caption finds no caption with two tags"),
        ({"shuffle_caption": True, "keep_tokens": 1}, "a, b", "a, b, c", "shuffle_caption finds no caption with two"),
        ({"shuffle_caption": True}, "(a, b)", "(a, b), c", "shuffle_caption finds no caption with two tags"),
        (
            {"shuffle_caption": True, "keep_tokens": 2, "keep_tokens_separator": "|"},
            "a, b | c | d, e",
            "a | b, c | d",
            "shuffle_caption finds no caption with two tags",
        ),
        ({"enable_wildcard": True}, "a cat", "a {cat|dog}", "enable_wildcard finds neither a brace nor a second line"),
        ({"enable_wildcard": True}, "a cat\n\n", "a cat\na dog", "enable_wildcard finds neither"),
        ({"caption_separator": ";"}, "a, b", "a; b", "caption_separator ';' is in no caption"),
    ],
)
def test_changes_of_captions_that_find_nothing_are_told(
    folder: Path, options: dict[str, object], idle: str, works: str, told: str
) -> None:
    caption_all(folder, idle)
    (note,) = check(folder, **options).index.notes
    assert note.startswith(told) and note.endswith(str(folder / "2_shs dog"))
    caption_all(folder, idle, works)
    assert check(folder, **options).index.notes == ()


def test_prefix_and_suffix_have_tags_to_shuffle(folder: Path) -> None:
    caption_all(folder, "one tag")
    assert check(folder, shuffle_caption=True, caption_suffix=", two").index.notes == ()


def test_captions_that_are_always_empty_are_told(folder: Path) -> None:
    for always in ({"caption_dropout_rate": 1.0}, {"caption_dropout_every_n_epochs": 1}):
        (note,) = check(folder, **always).index.notes
        assert note.startswith("every caption is trained empty") and "2_shs dog" in note
    for sometimes in ({"caption_dropout_rate": 0.99}, {"caption_dropout_every_n_epochs": 2}):
        assert check(folder, **sometimes).index.notes == ()


def test_a_warm_up_longer_than_the_run_is_told(folder: Path) -> None:
    caption_all(folder, "a, b, c")
    (note,) = check(folder, None, 99, token_warmup_step=100).index.notes
    assert note.startswith("token_warmup_step 100 is longer than the run of 99 updates")
    for steps, length in ((None, 100), (100, 100), (1, 0.9)):
        assert check(folder, None, steps, token_warmup_step=length).index.notes == ()


def test_a_weight_of_missing_regularisation_pictures_is_told(folder: Path, three: Path) -> None:
    (note,) = check(folder, prior_loss_weight=0.5).index.notes
    assert note == "--prior_loss_weight 0.5 has no effect: there are no regularisation pictures"
    assert described(three, SUBSETS, prior_loss_weight=0.5) == ()


def test_some_picture_must_have_a_weight(folder: Path, three: Path) -> None:
    with pytest.raises(UserError, match="the loss of every picture has weight 0"):
        check(folder, loss_weight=0.0)
    text = SUBSETS.replace('b"', 'b"\nloss_weight = 0', 1)
    assert described(three, text) == ()
    with pytest.raises(UserError, match="the loss of every picture has weight 0"):
        described(three, "loss_weight = 0" + SUBSETS)

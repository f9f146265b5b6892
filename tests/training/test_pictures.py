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
from library.training.pictures import Pictures, check_pictures
from tests.data.data_helpers import save_picture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        save_picture(tmp_path / "train" / "2_shs dog" / f"{number}.png", (80, 64), seed=number)
    return tmp_path / "train"


def check(folder: Path, caching: CachingOptions | None = None, **options: object) -> Pictures:
    data = DataOptions(train_data_dir=str(folder), resolution=Size(64, 64), **options)  # type: ignore[arg-type]
    return check_pictures(data, caching or CachingOptions(), TextOptions())


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

"""Finding the masks of pictures, and what is told when they are missing, ambiguous or broken."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.description.config import Description
from library.data.index.index import ImageIndex, build_index
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture
from tests.data.masked_world import masked_index, masked_subset, save_mask, save_world


def masks_of(index: ImageIndex) -> dict[str, str | None]:
    found = {index.names[record]: index.mask_path(record) for record in range(len(index))}
    return {name: None if path is None else path.name for name, path in found.items()}


def told(root: Path, **changes: object) -> list[str]:
    with pytest.raises(UserError) as caught:
        index_of(make_dataset(masked_subset(root, **changes)))
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


def test_masks_are_found_by_the_stem_of_the_picture(tmp_path: Path) -> None:
    save_world(tmp_path)
    index = masked_index(tmp_path)
    assert masks_of(index) == {
        "a.png": "a.webp", "b.jpg": "b.png", "c.png": "c.png", "d.png": "d.bmp", "r0.png": None, "r1.png": None
    }  # fmt: skip
    assert index.mask_path(0) == tmp_path / "masks" / "a.webp" and index.notes == ()
    assert [index.has_mask(record) for record in range(6)] == [True] * 4 + [False] * 2


def test_without_a_folder_there_is_no_column(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    index = index_of(make_dataset(make_subset(tmp_path)))
    assert index.masks is None and index.mask_path(0) is None and not index.has_mask(0)


def test_missing_masks_are_named(tmp_path: Path) -> None:
    save_world(tmp_path)
    (tmp_path / "masks" / "b.png").unlink()
    (tmp_path / "masks" / "c.png").unlink()
    assert told(tmp_path) == [f"{tmp_path / 'masks'}: 2 of 4 pictures have no mask there: b.jpg, c.png"]


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    save_world(tmp_path)
    (problem,) = told(tmp_path, conditioning_data_dir=tmp_path / "nowhere")
    assert problem.startswith(f"{tmp_path / 'nowhere'}: the folder of the masks does not exist")


def test_two_masks_for_one_picture_are_told_unless_one_has_its_whole_name(tmp_path: Path) -> None:
    save_world(tmp_path)
    save_mask(tmp_path / "masks" / "c.bmp", (40, 120))
    assert masks_of(masked_index(tmp_path))["c.png"] == "c.png"
    save_mask(tmp_path / "masks" / "a.bmp", (64, 64))
    assert told(tmp_path) == [f"{tmp_path / 'masks'}: both a.bmp and a.webp could be the mask of a"]


def test_pictures_that_share_a_stem_may_share_a_mask(tmp_path: Path) -> None:
    save_world(tmp_path)
    save_picture(tmp_path / "pictures" / "a.jpg", (64, 64))
    assert {masks_of(masked_index(tmp_path))[name] for name in ("a.png", "a.jpg")} == {"a.webp"}


def test_broken_masks_are_told_with_everything_else(tmp_path: Path) -> None:
    save_world(tmp_path)
    path = tmp_path / "masks" / "c.png"
    path.write_bytes(path.read_bytes()[:-30])
    (tmp_path / "masks" / "d.bmp").write_text("not a picture", encoding="utf-8")
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    problems = told(tmp_path)
    assert sum("the mask cannot be read" in problem for problem in problems) == 2
    assert any(problem.startswith(str(path)) for problem in problems) and any("a.png" in p for p in problems)


def test_other_proportions_are_told_and_stay_usable(tmp_path: Path) -> None:
    save_world(tmp_path)
    save_mask(tmp_path / "masks" / "b.png", (60, 60))
    (note,) = masked_index(tmp_path).notes
    assert note == f"{tmp_path / 'masks'}: 1 masks have other proportions than their pictures and are stretched: b.png"


def test_masks_that_only_their_exif_turns_upright_fit(tmp_path: Path) -> None:
    save_world(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (90, 150), 255).save(tmp_path / "masks" / "b.png", exif=exif)
    assert masked_index(tmp_path).notes == ()


def test_masks_of_left_out_pictures_are_not_needed(tmp_path: Path) -> None:

    save_world(tmp_path)
    (tmp_path / "pictures" / "c.png").write_bytes(b"")
    (tmp_path / "masks" / "c.png").unlink()
    dataset = make_dataset(masked_subset(tmp_path))
    index = build_index(Description((dataset,), ()), 1.0, "skip")
    assert masks_of(index) == {"a.png": "a.webp", "b.jpg": "b.png", "d.png": "d.bmp"}
    assert index.size(2) == Size(90, 64)


def test_folders_below_are_looked_up_below(tmp_path: Path) -> None:
    for seed, name in enumerate(("x/a.png", "y/a.png")):
        save_picture(tmp_path / "pictures" / name, seed=seed)
    save_mask(tmp_path / "masks" / "x" / "a.png", (64, 64))
    metadata = tmp_path / "all.json"
    metadata.write_text('{"x/a.png": {"caption": "one"}, "y/a.png": {"caption": "two"}}', encoding="utf-8")
    assert told(tmp_path, metadata_file=metadata) == [
        f"{tmp_path / 'masks'}: 1 of 2 pictures have no mask there: y/a.png"
    ]
    save_mask(tmp_path / "masks" / "y" / "a.bmp", (64, 64))
    index = index_of(make_dataset(masked_subset(tmp_path, metadata_file=metadata)))
    assert [index.mask_path(record) for record in range(2)] == [
        tmp_path / "masks" / "x" / "a.png",
        tmp_path / "masks" / "y" / "a.bmp",
    ]

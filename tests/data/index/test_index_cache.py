"""cache_info: the second start opens only what changed, and what it says is what a first start would say."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.captions.caption_changes import CaptionChanges
from library.data.description.config import Description, SubsetConfig
from library.data.index.index import ImageIndex, build_index
from library.data.index.index_cache import FILE_STEM, InfoBuilder, PictureInfo
from library.data.index.listing import Stamp
from tests.data.data_helpers import make_dataset, make_subset, save_picture

KEPT = f"{FILE_STEM}.npz"


def start(*subsets: SubsetConfig, bad_images: str = "fail") -> ImageIndex:
    return build_index(Description((make_dataset(*subsets),), ()), 1.0, bad_images)


def dogs(root: Path, **changes: object) -> SubsetConfig:
    return make_subset(root / "dogs", **{"cache_info": True, **changes})


def make_dogs(root: Path) -> Path:
    """Four pictures, three captions."""
    folder = root / "dogs"
    for number, size in enumerate([(64, 64), (90, 40), (40, 90), (70, 64)]):
        save_picture(folder / f"{number}.png", size, seed=number)
    for number in (0, 1, 3):
        (folder / f"{number}.txt").write_text(f"dog {number}\nsecond line {number}\n", encoding="utf-8")
    return folder


def content(index: ImageIndex) -> list[tuple[Any, ...]]:
    """All that an index says of its pictures."""
    columns = [index.width, index.height, index.has_alpha, index.caption_source, index.subset]
    return list(zip(index.names, index.captions, *(column.tolist() for column in columns), strict=True))


def write_at(path: Path, data: bytes, seconds: int) -> None:
    """Writes a file and gives it a time that differs from that of any other test file."""
    path.write_bytes(data)
    os.utime(path, (seconds, seconds))


def spoil(folder: Path) -> None:
    """Exchanges the content of every file for bytes that are neither picture nor text; names, sizes, times stay."""
    for path in folder.iterdir():
        if not path.name.startswith(FILE_STEM):
            found = path.stat()
            path.write_bytes(b"\xff" * found.st_size)
            os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def test_the_second_start_opens_nothing(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    first = start(dogs(tmp_path))
    assert first.opened == (4, 3) and (folder / KEPT).is_file()
    written = (folder / KEPT).stat().st_mtime_ns
    spoil(folder)
    second = start(dogs(tmp_path))
    assert second.opened == (0, 0)
    assert content(second) == content(first) and second.notes == first.notes == ()
    assert (folder / KEPT).stat().st_mtime_ns == written
    with pytest.raises(UserError, match=r"3\.png"):  # it was really spoilt
        start(dogs(tmp_path, cache_info=False))


def test_nothing_is_written_unless_asked_for(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    before = sorted(folder.iterdir())
    assert start(dogs(tmp_path, cache_info=False)).opened == (4, 3)
    assert sorted(folder.iterdir()) == before


def other_picture(folder: Path) -> None:
    save_picture(folder / "1.png", (48, 80), seed=9)
    os.utime(folder / "1.png", (1000, 1000))


CHANGES: dict[str, tuple[Callable[[Path], object], tuple[int, int]]] = {
    "nothing": (lambda folder: None, (0, 0)),
    "a picture": (other_picture, (1, 0)),
    "its time alone": (lambda folder: os.utime(folder / "1.png", (1000, 1000)), (1, 0)),
    "a caption": (lambda folder: write_at(folder / "1.txt", b"a cat", 1000), (0, 1)),
    "a caption, not its size": (lambda folder: write_at(folder / "1.txt", b"cat 1\nsecond line 1\n", 1000), (0, 1)),
    "a caption came": (lambda folder: write_at(folder / "2.caption", b"a cat", 1000), (0, 1)),
    "a caption went": (lambda folder: (folder / "1.txt").unlink(), (0, 0)),
    "another kind of caption": (lambda folder: (folder / "1.txt").rename(folder / "1.caption"), (0, 1)),
    "a picture came first": (lambda folder: save_picture(folder / "0.jpg", (40, 40)), (1, 1)),
    "a picture came between": (lambda folder: save_picture(folder / "1b.png", (40, 40)), (1, 0)),
    "a picture came last": (lambda folder: save_picture(folder / "z.png", (40, 40)), (1, 0)),
    "the first picture went": (lambda folder: (folder / "0.png").unlink(), (0, 0)),
    "the last picture went": (lambda folder: (folder / "3.png").unlink(), (0, 0)),
    "a picture got another name": (lambda folder: (folder / "1.png").rename(folder / "9.png"), (1, 0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_opened_alone(tmp_path: Path, change: str) -> None:
    folder = make_dogs(tmp_path)
    start(dogs(tmp_path))
    make_change, opened = CHANGES[change]
    make_change(folder)
    again = start(dogs(tmp_path))
    assert again.opened == opened
    assert content(again) == content(start(dogs(tmp_path, cache_info=False)))
    third = start(dogs(tmp_path))
    assert third.opened == (0, 0) and content(third) == content(again)
    with zipfile.ZipFile(folder / KEPT) as kept, kept.open("width.npy") as column:
        assert len(np.load(column)) == len(again)  # rows of what vanished are not kept


@pytest.mark.parametrize(
    "settings",
    [
        {"caption_extensions": (".caption",)},
        {"caption_extensions": (".caption", ".txt")},
        {"caption_changes": CaptionChanges(wildcard=True)},
    ],
    ids=str,
)
def test_captions_read_otherwise_are_read_again(tmp_path: Path, settings: dict[str, object]) -> None:
    folder = make_dogs(tmp_path)
    (folder / "2.caption").write_text("dog 2\nsecond line 2\n", encoding="utf-8")
    first = start(dogs(tmp_path))
    again = start(dogs(tmp_path, **settings))
    plain = start(dogs(tmp_path, cache_info=False, **settings))
    assert again.opened.pictures == 0 and again.opened.captions == plain.opened.captions > 0
    assert content(again) == content(plain)
    assert start(dogs(tmp_path, **settings)).opened == (0, 0)
    back = start(dogs(tmp_path))
    assert content(back) == content(first) and back.opened == (0, 0)  # each way of reading has its own file


def test_class_tokens_and_permissions_are_no_part_of_what_is_kept(tmp_path: Path) -> None:
    make_dogs(tmp_path)
    start(dogs(tmp_path))
    again = start(dogs(tmp_path, class_tokens="zwx cat", num_repeats=3.0))
    assert again.opened == (0, 0) and again.caption(2) == "zwx cat"
    with pytest.raises(UserError, match="1 of 4 pictures have neither"):
        start(dogs(tmp_path, class_tokens=None))


def test_notes_and_transparency_are_kept(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    Image.new("RGBA", (64, 64), (9, 9, 9, 0)).save(folder / "1.png")
    frames = [Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in (10, 90)]
    frames[0].save(folder / "2.webp", save_all=True, append_images=frames[1:], lossless=True)
    first = start(dogs(tmp_path))
    second = start(dogs(tmp_path))
    assert second.opened == (0, 0) and second.notes == first.notes and "2.webp" in str(first.notes)
    assert second.has_alpha.tolist() == first.has_alpha.tolist() == [False, True, False, False, False]


def npz(**columns: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path.open("wb"), **columns)


def rewritten(**columns: Any) -> Callable[[Path], None]:
    """The file that is there with some columns exchanged."""

    def write(path: Path) -> None:
        with np.load(path) as there:
            kept = dict(there)
        with path.open("wb") as file:
            np.savez(file, **{**kept, **columns})

    return write


class Touch:
    """Leaves a file behind if it is ever unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self._path,))


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("something else", encoding="utf-8"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-500]),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "one column": lambda path: np.save(path.open("wb"), np.zeros(3)),
    "foreign": npz(latents=np.zeros((4, 8, 8), dtype=np.float32)),
    "another format": rewritten(format=np.array("sd-atelier index 99")),
    "a pickle": lambda path: rewritten(width=np.array([Touch(path.with_name("ran"))], dtype=object))(path),
    "a short column": rewritten(width=np.array([64, 90], dtype=np.int32)),
    "another type": rewritten(width=np.array([64.0, 90.0, 40.0, 70.0])),
    "sizes of nothing": rewritten(width=np.zeros(4, dtype=np.int32)),
    "ends outside": rewritten(names_ends=np.array([0, 5, 10, 15, 9999])),
    "ends that fall": rewritten(names_ends=np.array([0, 15, 10, 5, 20])),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_told_and_replaced(tmp_path: Path, damage: str) -> None:
    folder = make_dogs(tmp_path)
    first = start(dogs(tmp_path))
    DAMAGES[damage](folder / KEPT)
    again = start(dogs(tmp_path))
    assert again.opened == (4, 3) and content(again) == content(first)
    assert len(again.notes) == 1 and KEPT in again.notes[0] and "it is replaced" in again.notes[0]
    assert not (folder / "ran").exists()
    assert start(dogs(tmp_path)).opened == (0, 0)


def test_no_broken_byte_changes_what_the_index_says(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    first = start(dogs(tmp_path))
    whole = (folder / KEPT).read_bytes()
    draws = np.random.default_rng(0)
    for place in draws.choice(len(whole), 60, replace=False).tolist():
        (folder / KEPT).write_bytes(
            whole[:place] + bytes([whole[place] ^ (1 << int(draws.integers(8)))]) + whole[place + 1 :]
        )
        assert content(start(dogs(tmp_path))) == content(first), place


def test_a_file_that_cannot_be_written_is_a_problem_beside_the_others(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    (folder / KEPT).mkdir()
    (folder / "1.png").write_bytes(b"")
    with pytest.raises(UserError) as error:
        start(dogs(tmp_path))
    problems = [str(problem) for problem in error.value.problems]
    assert len(problems) == 2
    assert KEPT in problems[0] and "cannot be kept there" in problems[0] and "leave cache_info out" in problems[0]
    assert "1.png" in problems[1]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="rights do not bind this user")
def test_a_folder_for_reading_alone_is_fine_once_the_file_is_there(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    folder.chmod(0o555)
    try:
        with pytest.raises(UserError, match="cannot be kept there") as error:
            start(dogs(tmp_path))
        assert len(error.value.problems) == 1
        folder.chmod(0o755)
        start(dogs(tmp_path))
        folder.chmod(0o555)
        assert start(dogs(tmp_path)).opened == (0, 0)
    finally:
        folder.chmod(0o755)


def test_after_a_mistake_only_what_was_mended_is_opened(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    (folder / "1.txt").write_bytes(b"caf\xe9")
    (folder / "3.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        start(dogs(tmp_path))
    assert len(error.value.problems) == 2
    (folder / "1.txt").write_text("a dog", encoding="utf-8")
    save_picture(folder / "3.png")
    mended = start(dogs(tmp_path))
    assert mended.opened == (1, 2) and content(mended) == content(start(dogs(tmp_path, cache_info=False)))


def test_pictures_that_are_left_out_are_looked_at_again(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    (folder / "0.png").write_bytes(b"no picture")
    assert start(dogs(tmp_path), bad_images="skip").opened == (4, 3)
    written = (folder / KEPT).stat().st_mtime_ns
    again = start(dogs(tmp_path), bad_images="skip")
    assert again.opened.pictures == 1 and len(again) == 3 and len(again.left_out) == 1
    assert (folder / KEPT).stat().st_mtime_ns == written


def test_links_are_told_by_what_they_lead_to(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    real = save_picture(tmp_path / "elsewhere" / "x.png", (40, 64))
    (folder / "link.png").symlink_to(real)
    start(dogs(tmp_path))
    save_picture(real, (64, 40))
    os.utime(real, (1000, 1000))
    again = start(dogs(tmp_path))
    assert again.opened == (1, 0) and again.size(4) == (64, 40)


@pytest.mark.parametrize("names_folder", [True, False])
def test_metadata_keeps_pictures_and_reads_its_captions_anew(tmp_path: Path, names_folder: bool) -> None:
    folder = make_dogs(tmp_path)
    save_picture(folder / "deep" / "a.png", (40, 40))
    names = ["0.png", "1.png", "deep/a.png"]
    file = tmp_path / "meta.json"

    def write(word: str) -> SubsetConfig:
        keys = names if names_folder else [str(folder / name) for name in names]
        file.write_text(json.dumps({key: {"caption": word} for key in keys}), encoding="utf-8")
        image_dir = folder if names_folder else None
        return make_subset(folder, image_dir=image_dir, metadata_file=file, cache_info=True)  # type: ignore[arg-type]

    first = start(write("one"))
    assert first.opened == (3, 0)
    home = folder if names_folder else tmp_path
    (kept,) = home.glob(f"{FILE_STEM}*.npz")
    assert kept.name.startswith(f"{FILE_STEM}-meta") and not (folder / KEPT).exists()
    spoil(folder / "deep")
    second = start(write("two"))
    assert second.opened == (0, 0) and list(second.captions) == ["two"] * 3
    assert second.width.tolist() == first.width.tolist() and second.notes == first.notes


def test_one_folder_in_two_subsets_is_opened_once_from_the_second_start_on(tmp_path: Path) -> None:
    make_dogs(tmp_path)
    both = dogs(tmp_path), dogs(tmp_path, class_tokens="other")
    assert start(*both).opened == (4, 3)  # the second subset finds what the first one kept
    assert start(*both).opened == (0, 0)


def test_subsets_of_one_folder_that_read_other_captions_keep_both(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    for number in range(4):
        (folder / f"{number}.caption").write_text(f"other {number}", encoding="utf-8")
        (folder / f"{number}.tags").write_text(f"tag {number}", encoding="utf-8")
    wild = CaptionChanges(wildcard=True)
    readers: list[dict[str, object]] = [
        {"caption_extensions": (".tags",)},
        {"caption_extensions": (".caption",)},
        {"caption_extensions": (".caption",), "caption_changes": wild},
    ]
    subsets = [dogs(tmp_path, **changes) for changes in readers]
    first = start(*subsets)
    assert [first.caption(record) for record in (0, 4, 8)] == ["tag 0", "other 0", "other 0"]
    before = content(first)
    spoil(folder)
    second = start(*subsets)
    assert second.opened == (0, 0) and content(second) == before


def test_metadata_files_of_one_name_keep_both(tmp_path: Path) -> None:
    folder = make_dogs(tmp_path)
    subsets = []
    for place, names in (("x", ["0.png", "1.png"]), ("y", ["2.png"]), ("dogs", ["1.png", "3.png"])):
        file = tmp_path / place / "meta.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({name: {"caption": place} for name in names}), encoding="utf-8")
        subsets.append(dogs(tmp_path, metadata_file=file))
    first = start(*subsets)
    assert list(first.captions) == ["x", "x", "y", "dogs", "dogs"]
    second = start(*subsets)
    assert second.opened == (0, 0) and content(second) == content(first)
    assert len(list(folder.glob(f"{FILE_STEM}-meta*.npz"))) == 3
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("x", "y", "dogs"):
        (tmp_path / name).rename(moved / name)
    again = [dogs(moved, metadata_file=moved / place / "meta.json") for place in ("x", "y", "dogs")]
    assert start(*again).opened == (0, 0)


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    info = PictureInfo("a.png", Stamp(3, 5), Size(64, 40), True, "odd", "a.txt", Stamp(1, 2), "a dog")
    for name in ("x.npz", "y.npz"):
        InfoBuilder([info]).write(tmp_path / name, "{}")
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "y.npz").read_bytes()
    with np.load(tmp_path / "x.npz", allow_pickle=False) as columns:
        assert {name: column.tolist() for name, column in columns.items() if column.ndim and "_bytes" not in name} == {
            "names_ends": [0, 5],
            "notes_ends": [0, 3],
            "caption_names_ends": [0, 5],
            "captions_ends": [0, 5],
            "size": [3],
            "mtime": [5],
            "width": [64],
            "height": [40],
            "has_alpha": [1],
            "caption_size": [1],
            "caption_mtime": [2],
        }

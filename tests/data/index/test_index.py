"""The index: what it holds, and every problem of a folder told at once."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch.multiprocessing
from PIL import Image

from library.core.errors import UserError
from library.data.captions.caption_changes import CaptionChanges
from library.data.description.config import Description, SubsetConfig
from library.data.index.index import SLOW_SECONDS, CaptionSource, ImageIndex, build_index, hints_of
from library.data.placement import place_all
from tests.data.data_helpers import index_of, make_dataset, make_subset, make_world, save_picture


def problems_of(*subsets: object) -> str:
    with pytest.raises(UserError) as error:
        index_of(make_dataset(*subsets))  # type: ignore[arg-type]
    return str(error.value)


def skipping(*subsets: SubsetConfig) -> ImageIndex:
    return build_index(Description((make_dataset(*subsets),), ()), 1.0, "skip")


def test_columns_hold_what_lies_on_disk(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    assert len(index) == 10
    assert index.size(3) == (128, 40) and index.path(3) == tmp_path / "dogs" / "3.png"
    assert index.caption(1) == "a dog, outdoors" and index.caption(0) == "shs dog" and index.caption(9) == "dog"
    assert index.caption_source[1] == CaptionSource.FILE and index.caption_source[0] == CaptionSource.CLASS_TOKENS
    assert index.repeats.tolist() == [2] * 7 + [1] * 3
    assert index.is_reg.tolist() == [False] * 7 + [True] * 3
    assert index.loss_weight.tolist() == [1.0] * 7 + [0.5] * 3


def test_keys_do_not_depend_on_where_the_folders_lie(tmp_path: Path) -> None:
    here, there = make_world(tmp_path / "a"), make_world(tmp_path / "b" / "c")
    keys = [here.key(record) for record in range(len(here))]
    assert keys == [there.key(record) for record in range(len(there))]
    assert keys[0] == "0/0/0.png" and keys[9] == "0/1/r2.jpg" and len(set(keys)) == 10


def test_subsets_are_counted_within_their_dataset(tmp_path: Path) -> None:
    for name in "abc":
        save_picture(tmp_path / name / "x.png")
    a, b, c = (make_subset(tmp_path / name) for name in "abc")
    index = index_of(make_dataset(a, b), make_dataset(c))
    assert [index.key(record) for record in range(3)] == ["0/0/x.png", "0/1/x.png", "1/0/x.png"]
    assert index.path(2) == tmp_path / "c" / "x.png"


def test_index_survives_pickling(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    copy = pickle.loads(pickle.dumps(index))
    assert [copy.caption(r) for r in range(10)] == [index.caption(r) for r in range(10)]
    assert np.array_equal(copy.width, index.width) and copy.path(5) == index.path(5)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    for name in ("broken", "encoding", "double", "uncaptioned", "below/inner"):
        save_picture(tmp_path / name / "a.png")
    (tmp_path / "broken" / "b.png").write_bytes(b"no picture")
    (tmp_path / "broken" / "c.png").touch()
    (tmp_path / "encoding" / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "double" / "a.txt").write_text("x", encoding="utf-8")
    (tmp_path / "double" / "a.caption").write_text("y", encoding="utf-8")
    (tmp_path / "gif").mkdir()
    (tmp_path / "gif" / "a.gif").touch()
    (tmp_path / "bare").mkdir()
    names = ["broken", "encoding", "double", "gif", "bare", "missing", "below"]
    subsets = [make_subset(tmp_path / name) for name in names]
    told = problems_of(*subsets, make_subset(tmp_path / "uncaptioned", class_tokens=None))
    for part in (
        "b.png: the content is not a picture",
        "c.png: the file is empty",
        "a.txt: the caption is not UTF-8",
        "a.txt and a.caption both stand beside",
        "it holds a.gif",
        "accepted are .png .jpg .jpeg .webp .bmp",
        "the folder is empty",
        "the folder does not exist",
        "they lie in its folders inner",
        "1 of 1 pictures have neither a caption file (.txt or .caption) nor class tokens: a.png",
        "--allow_missing_captions",
    ):
        assert part in told


def test_thousands_of_equal_problems_are_counted(tmp_path: Path) -> None:
    for number in range(25):
        (tmp_path / "dogs").mkdir(exist_ok=True)
        (tmp_path / "dogs" / f"{number}.png").touch()
    told = problems_of(make_subset(tmp_path / "dogs"))
    assert told.count("the file is empty") == 20 and "5 more like these" in told


def test_empty_captions_only_where_allowed(tmp_path: Path) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    (tmp_path / "dogs" / "a.txt").touch()
    index = index_of(make_dataset(make_subset(tmp_path / "dogs", class_tokens=None, allow_missing_captions=True)))
    assert index.caption(0) == "" and index.caption_source[0] == CaptionSource.EMPTY


def test_unused_caption_ending_is_told_once_for_its_place(tmp_path: Path) -> None:
    for name in ("dogs", "reg"):
        save_picture(tmp_path / name / "a.png")
    asked = {"caption_extensions": (".tags",), "caption_extension_from": "--caption_extension"}
    dogs, reg = make_subset(tmp_path / "dogs", **asked), make_subset(tmp_path / "reg", is_reg=True, **asked)
    told = problems_of(dogs, reg)
    assert told.count("ending in .tags") == 1 and "--caption_extension" in told
    (tmp_path / "dogs" / "a.tags").write_text("a dog", encoding="utf-8")
    assert index_of(make_dataset(dogs, reg)).caption(0) == "a dog"


def test_weights_and_repeats_are_those_of_the_folder(tmp_path: Path) -> None:
    for name in ("dogs", "cats", "reg"):
        save_picture(tmp_path / name / "a.png")
    dogs = make_subset(tmp_path / "dogs", num_repeats=0.25, loss_weight=3.0)
    cats = make_subset(tmp_path / "cats", num_repeats=10.0)
    reg = make_subset(tmp_path / "reg", is_reg=True, loss_weight=0.5)
    index = index_of(make_dataset(dogs, cats, reg), prior_loss_weight=0.5)
    assert index.loss_weight.tolist() == [3.0, 1.0, 0.25] and index.loss_weight.dtype == np.float32
    assert index.repeats.tolist() == [0.25, 10.0, 1.0] and index.repeats.dtype == np.float64


def test_transparency_is_known(tmp_path: Path) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    Image.new("RGBA", (64, 64), (1, 2, 3, 4)).save(tmp_path / "dogs" / "b.png")
    index = index_of(make_dataset(make_subset(tmp_path / "dogs")))
    assert index.has_alpha.tolist() == [False, True] and index.has_alpha.dtype == np.bool_


def test_all_lines_are_read_where_one_is_drawn(tmp_path: Path) -> None:
    save_picture(tmp_path / "dogs" / "a.png")
    (tmp_path / "dogs" / "a.txt").write_text("one\n\ntwo\n", encoding="utf-8")
    plain, drawn = make_subset(tmp_path / "dogs"), CaptionChanges(wildcard=True)
    index = index_of(make_dataset(plain, make_subset(tmp_path / "dogs", caption_changes=drawn)))
    assert list(index.captions) == ["one", "one\ntwo"]


def test_bad_pictures_are_left_out_where_that_is_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    for number in range(10):
        save_picture(folder / f"{number}.png", (64, 64 + number))
    for number in (0, 2, 3, 4, 5, 6, 9):
        (folder / f"{number}.png").write_bytes(b"")
    index = skipping(make_subset(folder))
    assert list(index.names) == ["1.png", "7.png", "8.png"] and index.height.tolist() == [65, 71, 72]
    (note,) = index.notes
    assert "7 of 10 pictures cannot be read and are left out" in note and "and 2 more" in note
    assert ": 0.png (the file is empty" in note
    assert [problem.where for problem in index.left_out] == [str(folder / f"{n}.png") for n in (0, 2, 3, 4, 5, 6, 9)]
    assert "--bad_images skip" in problems_of(make_subset(folder))


def test_a_folder_without_a_whole_picture_is_a_mistake_all_the_same(tmp_path: Path) -> None:
    for name in ("dogs", "cats"):
        save_picture(tmp_path / name / "a.png")
    (tmp_path / "cats" / "a.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"none of its 1 pictures can be read, such as .*a\.png: the file is empty"):
        skipping(make_subset(tmp_path / "dogs"), make_subset(tmp_path / "cats"))


def test_captions_stay_mistakes_where_bad_pictures_are_left_out(tmp_path: Path) -> None:
    for name in "abc":
        save_picture(tmp_path / "dogs" / f"{name}.png")
    (tmp_path / "dogs" / "a.png").write_bytes(b"")
    (tmp_path / "dogs" / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError) as error:
        skipping(make_subset(tmp_path / "dogs", class_tokens=None))
    told = str(error.value)
    assert "b.txt: the caption is not UTF-8" in told and "1 of 3 pictures have neither" in told and ": c.png" in told


def test_every_wording_is_told_however_often_another_comes(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    folder.mkdir()
    for number in range(30):
        (folder / f"{number:02d}.png").touch()
    (folder / "99.png").write_bytes(b"no picture")
    told = problems_of(make_subset(folder))
    assert told.count("the file is empty") == 20 and "99.png" in told and "10 more like these" in told


def test_what_is_odd_is_told_by_kind(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    for number in range(7):
        save_picture(folder / f"{number}.png").rename(folder / f"{number}.jpg")
    save_picture(folder / "fine.png")
    (folder / "moving.gif").touch()
    (folder / "scan.tif").touch()
    notes = index_of(make_dataset(make_subset(folder))).notes
    odd = [note for note in notes if "0.jpg" in note]
    assert len(odd) == 1 and "(7: 0.jpg, 1.jpg, 2.jpg, 3.jpg, 4.jpg and 2 more)" in odd[0]
    assert any("1 pictures are not trained" in note and "moving.gif" in note for note in notes)
    assert any("scan.tif" in note for note in notes) and not any("fine.png" in note for note in notes)


@pytest.mark.skipif(os.name == "nt", reason="links and pipes need rights there")
def test_links_that_lead_nowhere_are_told_and_pipes_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "dogs"
    save_picture(folder / "a.png")
    (folder / "b.png").symlink_to("gone.png")
    (folder / "c.png").symlink_to("c.png")
    (folder / "d.png").mkdir()
    os.mkfifo(folder / "e.png")
    told = problems_of(make_subset(folder))
    assert "b.png" in told and "c.png" in told and "d.png" not in told and "e.png" not in told


def test_files_are_counted_as_they_are_opened(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    assert index.opened == (10, 1)


def test_a_slow_start_without_a_kept_index_is_told_of_it(tmp_path: Path) -> None:
    plain, keeping = make_subset(tmp_path), make_subset(tmp_path, cache_info=True)
    (hint,) = hints_of(SLOW_SECONDS + 1, 1234, [keeping, plain])
    assert "1234 pictures took 21 seconds" in hint and "--cache_info" in hint
    assert not hints_of(SLOW_SECONDS - 1, 1234, [plain])
    assert not hints_of(SLOW_SECONDS + 1, 1234, [keeping])
    assert not hints_of(SLOW_SECONDS + 1, 0, [plain])


def make_many(folder: Path, count: int) -> None:
    """Copies of one picture, each with a caption of about 60 characters."""
    data = save_picture(folder / "first.png", (16, 16)).read_bytes()
    (folder / "first.png").unlink()
    for number in range(count):
        (folder / f"picture_{number:06d}.png").write_bytes(data)
        text = f"a photograph of a thing, outdoors, evening light, number {number}"
        (folder / f"picture_{number:06d}.txt").write_text(text, encoding="utf-8")


def touch_all(index: ImageIndex, placements: Any, answers: Any) -> None:
    told = [(str(index.path(r)), index.caption(r), index.key(r), placements.crop_box(r)) for r in range(len(index))]
    answers.put((told, index.width.flags.owndata, placements.bucket.flags.owndata))


@pytest.mark.parametrize("keeps", [False, True])
def test_a_picture_takes_few_bytes_and_none_in_workers(tmp_path: Path, keeps: bool) -> None:
    count = 2000
    make_many(tmp_path / "dogs", count)
    dataset = make_dataset(make_subset(tmp_path / "dogs", cache_info=keeps))
    index_of(dataset)  # loads what is loaded once, and keeps the index for the second start
    tracemalloc.start()
    index = index_of(dataset)
    placements = place_all(index)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert index.opened.pictures == (0 if keeps else count)
    assert held / count < 300  # half of it are columns and captions; the bound for a million is 500
    assert len(bytes(ForkingPickler.dumps((index, placements)))) < 20_000  # handles, whatever the number of pictures


def test_a_spawned_worker_sees_what_the_main_process_sees(tmp_path: Path) -> None:
    index = make_world(tmp_path)
    placements = place_all(index)
    context = torch.multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    worker = context.Process(target=touch_all, args=(index, placements, answers))
    worker.start()
    told, *owned = answers.get()
    worker.join()
    assert told == [(str(index.path(r)), index.caption(r), index.key(r), placements.crop_box(r)) for r in range(10)]
    assert owned == [False, False]  # its columns lie in memory that is not its own

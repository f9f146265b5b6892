"""The index: what it holds, and every problem of a folder told at once."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from library.core.errors import UserError
from library.data.index import CaptionSource, Texts
from tests.data.data_helpers import index_of, make_dataset, make_subset, make_world, save_picture


def problems_of(*subsets: object) -> str:
    with pytest.raises(UserError) as error:
        index_of(make_dataset(*subsets))  # type: ignore[arg-type]
    return str(error.value)


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


def test_texts_hold_any_text() -> None:
    texts = ["", "a", "犬と空", "caf\udce9.png", ""]
    stored = Texts(texts)
    assert len(stored) == 5 and [stored[number] for number in range(5)] == texts
    assert len(Texts([])) == 0


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

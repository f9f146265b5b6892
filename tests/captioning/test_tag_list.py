"""What lies in a tagger's folder: which model, which list, what the list says."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from library.captioning.tag_list import Category, Family, find_tagger, holds_tagger, read_tag_list
from library.captioning.tagger_files import TaggerPlace, bring_tagger, find_place
from library.core.errors import UserError
from library.options.captioning import DEFAULT_TAGGER, TaggerOptions
from tests.captioning.tiny_tagger import CHARACTERS, DD_RATINGS, DD_TAGS, RATINGS, WD_TAGS, write_lines

WHERE, FIX = "--model_dir x", "take another"


def folder_of(folder: Path, *names: str) -> Path:
    for name in names:
        write_lines(folder / name, ["tag_id,name,category,count", "1,1girl,0,2"] if name.endswith("csv") else ["1girl"])
    return folder


def complaint(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_tag_list(find_tagger(folder, WHERE, FIX))
    return str(caught.value)


def test_a_wd_list(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "model.onnx")
    rows = [
        f"{n},{name},{9 if name in RATINGS else 4 if name in CHARACTERS else 0},5" for n, name in enumerate(WD_TAGS)
    ]
    quoted = '7,"don\'t_say_""lazy"",_again",1,5'  # category 1, an artist, is general to us
    text = "\r\n".join(["tag_id,name,category,count", *rows, quoted, ""])
    (folder / "selected_tags.csv").write_text(text, encoding="utf-8-sig", newline="")
    files = find_tagger(folder, WHERE, FIX)
    tags = read_tag_list(files)
    assert files.family is Family.WD
    assert tags.names == [*WD_TAGS, 'don\'t_say_"lazy",_again']
    assert [tags.names[number] for number in tags.of(Category.RATING)] == list(RATINGS)
    assert [tags.names[number] for number in tags.of(Category.CHARACTER)] == list(CHARACTERS)
    assert tags.categories[-1] is Category.GENERAL


@pytest.mark.parametrize("knows_characters", [True, False])
def test_a_deepdanbooru_list(tmp_path: Path, knows_characters: bool) -> None:
    folder = folder_of(tmp_path, "model-resnet_custom_v3.onnx")
    write_lines(folder / "tags.txt", [*DD_TAGS, "", ""])
    if knows_characters:
        write_lines(folder / "tags-character.txt", CHARACTERS)
    files = find_tagger(folder, WHERE, FIX)
    tags = read_tag_list(files)
    assert (files.family, list(tags.names)) == (Family.DEEPDANBOORU, list(DD_TAGS))
    assert [tags.names[number] for number in tags.of(Category.RATING)] == list(DD_RATINGS)
    assert [tags.names[number] for number in tags.of(Category.CHARACTER)] == list(
        CHARACTERS if knows_characters else ()
    )


def test_folders_without_or_with_several(tmp_path: Path) -> None:
    assert "no .onnx file" in complaint(folder_of(tmp_path / "a", "selected_tags.csv"))
    assert "no list of tags" in complaint(folder_of(tmp_path / "b", "model.onnx"))
    assert "a.onnx, b.onnx" in complaint(folder_of(tmp_path / "c", "a.onnx", "b.onnx", "tags.txt"))
    assert "selected_tags.csv, tags.txt" in complaint(
        folder_of(tmp_path / "d", "a.onnx", "selected_tags.csv", "tags.txt")
    )
    assert "tf2onnx" in complaint(folder_of(tmp_path / "e", "model-resnet_custom_v3.h5", "tags.txt"))
    assert "no .onnx file" in complaint(tmp_path / "missing")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"name,count\n1girl,5\n", "no column category"),
        (b"tag_id,name,category,count\n1,1girl,x,5\n", "line 2 is no tag"),
        (b"tag_id,name,category,count\n1,,0,5\n", "line 2 is no tag"),
        (b"tag_id,name,category,count\n1\n", "line 2 is no tag"),
        (b'tag_id,name,category,count\n1,"1gi"rl,0,5\n', "no table of tags"),
        (b"tag_id,name,category,count\n", "names no tag"),
        (b"", "no column name"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
    ],
)
def test_broken_lists(tmp_path: Path, content: bytes, what: str) -> None:
    folder = folder_of(tmp_path, "model.onnx")
    (folder / "selected_tags.csv").write_bytes(content)
    told = complaint(folder)
    assert what in told and FIX in told and "selected_tags.csv" in told


def test_where_the_tagger_lies(tmp_path: Path) -> None:
    default, other = DEFAULT_TAGGER.replace("/", "_"), "owner/wd-vit"
    top = str(tmp_path)
    assert find_place(TaggerOptions(model_dir=top), ()) == TaggerPlace(tmp_path / default, DEFAULT_TAGGER)
    folder_of(tmp_path / "owner_wd-vit", "model.onnx", "selected_tags.csv")
    assert not holds_tagger(tmp_path)  # it lies in a folder below
    named = TaggerOptions(model_dir=top, repo_id=other)
    assert find_place(named, {"repo_id"}) == TaggerPlace(tmp_path / "owner_wd-vit", other)
    assert bring_tagger(find_place(named, {"repo_id"}), False).model == tmp_path / "owner_wd-vit" / "model.onnx"
    folder_of(tmp_path, "model.onnx", "tags.txt")
    assert find_place(TaggerOptions(model_dir=top), ()) == TaggerPlace(tmp_path, None)
    assert find_place(named, {"repo_id"}).repo_id == other  # what was asked for comes first


def test_places_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no name of a repository"):
        find_place(TaggerOptions(model_dir=str(tmp_path), repo_id="../../etc"), {"repo_id"})
    folder_of(tmp_path, "model.onnx", "tags.txt")
    with pytest.raises(UserError, match="put there by hand"):
        find_place(TaggerOptions(model_dir=str(tmp_path), force_download=True), {"force_download"})


def test_a_file_is_no_folder_of_taggers(tmp_path: Path) -> None:
    model = folder_of(tmp_path, "model.onnx", "tags.txt") / "model.onnx"
    for given in ({"model_dir"}, {"model_dir", "repo_id"}):
        with pytest.raises(UserError, match=r"is a file, not a folder\n.*name the folder it lies in"):
            find_place(TaggerOptions(model_dir=str(model)), given)


def test_a_folder_with_something_else_is_not_filled(tmp_path: Path) -> None:
    """A model of another kind was meant, or another folder; what is there already counts, and so does what was cut."""
    folder_of(tmp_path, "config.json", "model.safetensors")
    options, given = TaggerOptions(model_dir=str(tmp_path)), {"model_dir"}
    with pytest.raises(UserError, match="holds files, but no tagger"):
        find_place(options, given)
    assert find_place(options, {"model_dir", "repo_id"}).repo_id == DEFAULT_TAGGER
    folder_of(tmp_path / DEFAULT_TAGGER.replace("/", "_"), "model.onnx.0123.part")
    assert find_place(options, given).repo_id == DEFAULT_TAGGER


def test_the_usual_tagger_is_announced_where_the_folder_has_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The tests run with HF_HUB_OFFLINE, so that nothing is fetched."""
    logging.getLogger("sd_atelier").propagate = True
    caplog.set_level(logging.INFO, "sd_atelier")
    top = tmp_path / "wd14_tager_model"
    options = TaggerOptions(model_dir=str(top))
    for given in ({"model_dir", "repo_id"}, {"model_dir"}):
        assert not caplog.messages
        with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
            bring_tagger(find_place(options, given), False)
    assert caplog.messages[0].startswith(f"no tagger lies in {top}: {DEFAULT_TAGGER} of the Hub is put into {top}")
    caplog.clear()
    folder_of(top / DEFAULT_TAGGER.replace("/", "_"), "model.onnx", "selected_tags.csv")
    bring_tagger(find_place(options, {"model_dir"}), False)
    assert not caplog.messages

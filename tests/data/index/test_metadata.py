"""The metadata style: entries, the pictures their keys name, and every mistake told with file, key and mend."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.core.errors import Problems, UserError
from library.core.sizes import Size
from library.data.description.config import describe
from library.data.facts import dataset_dirs, tag_frequency
from library.data.index.index import CaptionSource, ImageIndex, build_index
from library.data.index.metadata import find_pictures, read_metadata
from library.options.data import DataOptions
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def entries_for(keys: list[str]) -> dict[str, dict[str, str]]:
    return {key: {"caption": f"text of {key}"} for key in keys}


def read(path: Path) -> tuple[dict[str, str | None], str]:
    problems = Problems()
    captions = read_metadata(path, problems)
    return captions, "\n".join(map(str, problems))


def index_metadata(entries: Mapping[str, object], folder: Path | None, file: Path, **changes: object) -> ImageIndex:
    write_json(file, entries)
    subset = make_subset(folder, metadata_file=file, **{"class_tokens": None, **changes})  # type: ignore[arg-type]
    return index_of(make_dataset(subset))


def captions_of(index: ImageIndex) -> dict[str, str]:
    return {index.names[record]: index.caption(record) for record in range(len(index))}


@pytest.fixture
def cats(tmp_path: Path) -> Path:
    """a.png and b.jpg, and c.webp one folder deeper."""
    for number, name in enumerate(("a.png", "b.jpg", "deep/c.webp")):
        save_picture(tmp_path / "cats" / name, (64, 64), seed=number)
    return tmp_path / "cats"


# --- entries ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entry", "caption"),
    [
        ({"caption": "a cat", "tags": "sofa, light"}, "a cat, sofa, light"),
        ({"tags": "sofa, light", "caption": "a cat"}, "a cat, sofa, light"),
        ({"caption": " a cat \n", "tags": ""}, "a cat"),
        ({"tags": "sofa"}, "sofa"),
        ({"caption": "", "tags": "  "}, None),
        ({}, None),
        ({"caption": "a cat", "train_resolution": [512, 384]}, "a cat"),
        ({"caption": "犬", "train_resolution": "odd", "rating": {"x": None}}, "犬"),
        ({"caption": " a cat\r\n\n a dog ", "tags": "grass\nsun"}, "a cat, grass, sun\na dog, grass, sun"),
        ({"caption": "\n", "tags": "grass\nsun"}, "grass, sun"),
    ],
)
def test_caption_and_tags_are_joined_and_the_rest_is_accepted(
    tmp_path: Path, entry: object, caption: str | None
) -> None:
    assert read(write_json(tmp_path / "meta.json", {"a": entry})) == ({"a": caption}, "")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("a cat", 'the entry must be an object, got "a cat"'),
        (None, "the entry must be an object, got null"),
        ({"caption": 3}, "caption must be text, got 3"),
        ({"caption": "x", "tags": ["sofa", "light"]}, 'tags must be text, got ["sofa", "light"]'),
        ({"caption": None}, "caption must be text, got null"),
        ({"tags": "half \ud83d"}, "tags holds half of a character"),
    ],
)
def test_entries_of_a_wrong_type_are_told_with_file_and_key(tmp_path: Path, entry: object, told: str) -> None:
    file = write_json(tmp_path / "meta.json", {"good": {"caption": "x"}, "sub/b": entry})
    captions, problems = read(file)
    assert captions == {"good": "x"}
    assert f"{file}, key sub/b: {told}" in problems and problems.count("->") == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "not valid JSON: Expecting value: line 1 column 1"),
        (b'{"a": {"caption": "x",}}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'[{"caption": "x"}]', "no JSON object"),
        (b"{}", "holds no entries"),
        ('{"a": {"caption": "é"}}'.encode("latin-1"), "not UTF-8 text (byte 19)"),
        (b'{"a": {"caption": "x"}, "a": {"caption": "y"}}', "key a: stands twice"),
        (b'{"a": {"caption": "x", "caption": "y"}}', "key caption: stands twice"),
    ],
)
def test_files_that_cannot_be_understood(tmp_path: Path, content: bytes, told: str) -> None:
    file = tmp_path / "meta.json"
    file.write_bytes(content)
    problems = read(file)[1]
    assert told in problems and str(file) in problems and problems.count("->") == 1


def test_files_that_are_none(tmp_path: Path) -> None:
    assert "does not exist" in read(tmp_path / "nothing.json")[1]
    assert str(tmp_path) in read(tmp_path)[1]


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "meta.json"
    file.write_text('{"a": {"caption": "x"}}', encoding="utf-8-sig")
    assert read(file) == ({"a": "x"}, "")


def test_thousands_of_wrong_entries_are_counted(tmp_path: Path) -> None:
    problems = read(write_json(tmp_path / "meta.json", {str(number): 1 for number in range(25)}))[1]
    assert problems.count("must be an object") == 20 and "5 more like these" in problems


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["deep/c", "deep/c.webp", "deep\\c", "deep\\c.webp", "./deep/c", "deep/../deep/c"])
def test_relative_keys(cats: Path, tmp_path: Path, key: str) -> None:
    index = index_metadata(entries_for([key, "a", "b.jpg"]), cats, tmp_path / "meta.json")
    assert captions_of(index) == {"a.png": "text of a", "b.jpg": "text of b.jpg", "deep/c.webp": f"text of {key}"}
    assert index.path(2) == cats / "deep" / "c.webp"
    assert [index.key(record) for record in range(3)] == ["0/0/a.png", "0/0/b.jpg", "0/0/deep/c.webp"]
    assert set(index.caption_source.tolist()) == {CaptionSource.METADATA}


@pytest.mark.parametrize("with_folder", [True, False])
@pytest.mark.parametrize("ending", ["", ".png"])
def test_full_paths_need_no_folder(cats: Path, tmp_path: Path, with_folder: bool, ending: str) -> None:
    keys = [f"{cats / 'a'}{ending}", str(cats / "deep" / "c")]
    index = index_metadata(entries_for(keys), cats if with_folder else None, tmp_path / "meta.json")
    assert captions_of(index) == {"a.png": f"text of {keys[0]}", "deep/c.webp": f"text of {keys[1]}"}
    assert [index.path(record) for record in range(2)] == [cats / "a.png", cats / "deep" / "c.webp"]


def test_full_paths_of_several_folders_have_names_that_move_with_them(tmp_path: Path) -> None:
    names = []
    for home in (tmp_path / "here", tmp_path / "over" / "there"):
        for folder in ("cats", "dogs"):
            save_picture(home / folder / "a.png")
        keys = [str(home / "dogs" / "a.png"), str(home / "cats" / "a.png")]
        for folder_or_none in (None, home / "cats"):
            index = index_metadata(entries_for(keys), folder_or_none, tmp_path / "meta.json")
            assert [index.path(record) for record in range(2)] == [home / "cats" / "a.png", home / "dogs" / "a.png"]
            names.append([index.key(record) for record in range(2)])
    assert names == [["0/0/cats/a.png", "0/0/dogs/a.png"]] * 4


def test_a_relative_folder_stays_relative(cats: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    index = index_metadata(entries_for(["a", str(cats / "b")]), Path("cats"), Path("meta.json"))
    assert [index.path(record) for record in range(2)] == [Path("cats/a.png"), Path("cats/b.jpg")]


def test_a_whole_name_wins_over_a_stem(tmp_path: Path) -> None:
    for name in ("a.png", "a.png.jpg"):
        save_picture(tmp_path / "cats" / name)
    index = index_metadata(entries_for(["a.png", "a.png.jpg"]), tmp_path / "cats", tmp_path / "meta.json")
    assert captions_of(index) == {"a.png": "text of a.png", "a.png.jpg": "text of a.png.jpg"}


# No name of these letters is the whole file name of another, see test_a_whole_name_wins_over_a_stem.
NAMES = st.text("ab.é 犬_-", min_size=1, max_size=6).filter(lambda name: name[0] not in ". " and name[-1] not in ". ")
PLACES = st.lists(st.tuples(st.sampled_from(["", "x", "x/y"]), NAMES), min_size=1, max_size=6, unique=True)
STYLES = st.sampled_from(["stem", "ending", "backslash", "full", "full stem"])


@settings(max_examples=60, deadline=None)
@given(PLACES, st.data())
def test_every_spelling_of_a_picture_finds_it_and_no_other(places: list[tuple[str, str]], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as root:
        expected: dict[str, str | None] = {}
        keys: dict[str, str | None] = {}
        for folder, name in places:
            path = Path(root, folder, f"{name}.png")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for folder, name in places:
            relative = f"{folder}/{name}" if folder else name
            key = {
                "stem": relative,
                "ending": f"{relative}.png",
                "backslash": relative.replace("/", "\\"),
                "full": f"{root}/{relative}.png",
                "full stem": f"{root}/{relative}",
            }[data.draw(STYLES)]
            keys[key] = expected[f"{relative}.png"] = f"text of {relative}"
        problems = Problems()
        found = find_pictures(keys, Path("meta.json"), Path(root), problems)
        assert not problems, list(problems)
        assert found.root == Path(root) and found.without_entry == ()
        assert [picture.name for picture in found.pictures] == sorted(expected)
        assert {picture.name: picture.caption for picture in found.pictures} == expected


def test_keys_without_picture_are_counted_and_the_first_named(cats: Path, tmp_path: Path) -> None:
    lost = [f"lost{number}" for number in range(7)]
    with pytest.raises(UserError) as error:
        entries = {key: {"tags": "x"} for key in ("a", *lost, "x\0y", "\ud800/z")}
        index_metadata(entries, cats, tmp_path / "meta.json")
    told = str(error.value)
    assert "9 of 10 entries have no picture: lost0, lost1, lost2, lost3, lost4 and 4 more" in told
    assert f"{tmp_path / 'meta.json'}: " in told and f"(looked in {cats})" in told and len(error.value.problems) == 1


def test_relative_keys_without_a_folder(cats: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        index_metadata(entries_for(["a", str(cats / "b"), "C:\\gone\\c.png"]), None, tmp_path / "meta.json")
    told = str(error.value)
    assert "1 of 3 keys are no full paths" in told and "name it with image_dir" in told
    assert "1 of 3 entries have no picture: C:\\gone\\c.png" in told


def test_one_stem_in_several_endings_and_one_picture_for_several_keys(cats: Path, tmp_path: Path) -> None:
    save_picture(cats / "a.jpg")
    with pytest.raises(UserError) as error:
        index_metadata(entries_for(["a", "b", "b.jpg"]), cats, tmp_path / "meta.json")
    told = str(error.value)
    assert f"{tmp_path / 'meta.json'}, key a: it fits a.jpg and a.png" in told and "write the ending" in told
    assert "key b.jpg: it names the same picture as the key b" in told
    assert len(error.value.problems) == 2
    index = index_metadata(entries_for(["a.jpg", "a.png", "b"]), cats, tmp_path / "meta.json")
    assert list(captions_of(index)) == ["a.jpg", "a.png", "b.jpg"]


def test_mistakes_of_entries_keys_and_pictures_are_told_together(cats: Path, tmp_path: Path) -> None:
    (cats / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError) as error:
        index_metadata({**entries_for(["a", "lost"]), "b": {"tags": 1}}, cats, tmp_path / "meta.json")
    told = str(error.value)
    assert "the content is not a picture" in told and "have no picture: lost" in told and "tags must be text" in told


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the folder does not exist") as error:
        index_metadata(entries_for(["a"]), tmp_path / "nowhere", tmp_path / "meta.json")
    assert len(error.value.problems) == 1


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_what_is_left_out_is_noted_once(cats: Path, tmp_path: Path) -> None:
    for name in ("a.txt", "b.caption", "deep/c.txt"):
        (cats / name).write_text("not read", encoding="utf-8")
    for name in ("d.png", "deep/e.png"):
        save_picture(cats / name)
    index = index_metadata(entries_for(["a", "b", "deep/c"]), cats, tmp_path / "meta.json")
    assert set(captions_of(index).values()) == {"text of a", "text of b", "text of deep/c"}
    file = tmp_path / "meta.json"
    assert index.notes == (
        f"{file}: 2 pictures in its folders have no entry and are not trained: d.png, e.png",
        f"{file}: 3 pictures also have a caption file, which is not read",
    )
    assert index_of(make_dataset(make_subset(cats))).notes == ()


def test_entries_without_text_follow_the_rule_of_pictures_without_caption(cats: Path, tmp_path: Path) -> None:
    entries = {"a": {"caption": "a cat"}, "b": {"train_resolution": [64, 64]}}
    file = tmp_path / "meta.json"
    with pytest.raises(UserError) as error:
        index_metadata(entries, cats, file)
    told = str(error.value)
    assert f"{file}: 1 of 2 entries have neither caption nor tags, and no class tokens: b.jpg" in told
    assert "--allow_missing_captions" in told
    allowed = index_metadata(entries, cats, file, allow_missing_captions=True)
    assert captions_of(allowed) == {"a.png": "a cat", "b.jpg": ""}
    with_tokens = index_metadata(entries, cats, file, class_tokens="mira cat")
    assert captions_of(with_tokens) == {"a.png": "a cat", "b.jpg": "mira cat"}
    assert with_tokens.caption_source.tolist() == [CaptionSource.METADATA, CaptionSource.CLASS_TOKENS]


def test_facts_name_the_folder_or_the_file(cats: Path, tmp_path: Path) -> None:
    file = tmp_path / "many cats.json"
    index = index_metadata(entries_for(["a", "b"]), cats, file)
    assert dataset_dirs(index) == {"cats": {"n_repeats": 1, "img_count": 2}}
    assert tag_frequency(index) == {"cats": {"text of a": 1, "text of b": 1}}
    index = index_metadata({str(cats / "a"): {"tags": "x, y"}}, None, file)
    assert dataset_dirs(index) == {"many cats": {"n_repeats": 1, "img_count": 1}}
    assert tag_frequency(index) == {"many cats": {"x": 1, "y": 1}}


# --- descriptions -----------------------------------------------------------------------------------------------------

SIZE = {"resolution": Size(512, 512)}


def describe_toml(tmp_path: Path, subset: str, **options: object) -> ImageIndex:
    file = tmp_path / "data.toml"
    file.write_text(f"[[datasets]]\n[[datasets.subsets]]\n{subset}", encoding="utf-8")
    return build_index(describe(DataOptions(dataset_config=str(file), **SIZE, **options)), 0.5)  # type: ignore[arg-type]


def described(**options: object) -> str:
    with pytest.raises(UserError) as error:
        describe(DataOptions(**{**SIZE, **options}))  # type: ignore[arg-type]
    return str(error.value)


def test_flags_are_the_same_description_as_a_file(cats: Path, tmp_path: Path) -> None:
    meta = write_json(tmp_path / "meta.json", entries_for(["a", "b"]))
    save_picture(tmp_path / "reg" / "1_cat" / "r.png")
    flags = {"in_json": str(meta), "train_data_dir": str(cats), "reg_data_dir": str(tmp_path / "reg")}
    described_by_flags = describe(DataOptions(**flags, dataset_repeats=3, **SIZE))  # type: ignore[arg-type]
    text = f"""
image_dir = '{cats}'
metadata_file = '{meta}'
num_repeats = 3
[[datasets.subsets]]
image_dir = '{tmp_path / "reg" / "1_cat"}'
class_tokens = "cat"
is_reg = true
"""
    assert build_index(described_by_flags, 1.0).datasets == describe_toml(tmp_path, text).datasets
    assert described_by_flags.datasets[0].subsets[0].metadata_file == meta


def test_metadata_as_regularisation(cats: Path, tmp_path: Path) -> None:
    meta = write_json(tmp_path / "meta.json", entries_for(["a", "b"]))
    text = f"""
image_dir = '{cats / "deep"}'
class_tokens = "mira cat"
[[datasets.subsets]]
image_dir = '{cats}'
metadata_file = '{meta}'
is_reg = true
"""
    index = describe_toml(tmp_path, text)
    assert index.is_reg.tolist() == [False, True, True] and index.loss_weight.tolist() == [1.0, 0.5, 0.5]
    assert [index.caption(record) for record in range(3)] == ["mira cat", "text of a", "text of b"]


@pytest.mark.parametrize(
    ("line", "flag", "repeats"), [("", 1, 1), ("", 4, 4), ("num_repeats = 2", 4, 2), ("num_repeats = 1", 4, 1)]
)
def test_repeats_fall_back_to_the_flag(cats: Path, tmp_path: Path, line: str, flag: int, repeats: int) -> None:
    meta = write_json(tmp_path / "meta.json", entries_for([str(cats / "a")]))
    other = f"[[datasets.subsets]]\nimage_dir = '{cats / 'deep'}'\nclass_tokens = 'x'\n"
    index = describe_toml(tmp_path, f"metadata_file = '{meta}'\n{line}\n{other}", dataset_repeats=flag)
    assert index.repeats.tolist() == [repeats, 1]


def test_contradictions_are_refused(cats: Path, tmp_path: Path) -> None:
    told = described(in_json="meta.json", dataset_config="data.toml")
    assert "--dataset_config and --in_json are both given" in told
    told = described(in_json="meta.json", train_data_dir=str(tmp_path / "nowhere"), dataset_repeats=2)
    assert "--train_data_dir: " in told and "does not exist" in told and "dataset_repeats" not in told
    save_picture(tmp_path / "parent" / "3_x" / "a.png")
    told = described(train_data_dir=str(tmp_path / "parent"), dataset_repeats=2)
    assert "--dataset_repeats: dataset_repeats has no effect" in told
    told = described(in_json="meta.json", train_data_dir=str(cats), caption_extension=(".tags",))
    assert "--caption_extension: caption_extension has no effect: the captions stand in a metadata file" in told
    told = described(in_json="meta.json", train_data_dir=str(cats), reg_data_dir=str(cats))
    assert "name the same folder" in told


def test_an_ending_for_metadata_alone_is_refused_and_beside_files_allowed(cats: Path, tmp_path: Path) -> None:
    meta = write_json(tmp_path / "meta.json", entries_for(["a"]))
    metadata = f"image_dir = '{cats}'\nmetadata_file = '{meta}'\n"
    with pytest.raises(UserError, match="caption_extension has no effect") as error:
        describe_toml(tmp_path, f"{metadata}caption_extension = '.tags'\n")
    assert "line 5, key caption_extension" in str(error.value)
    (cats / "deep" / "c.tags").write_text("from a file", encoding="utf-8")
    files = f"[[datasets.subsets]]\nimage_dir = '{cats / 'deep'}'\n"
    index = describe_toml(tmp_path, f"{metadata}{files}", caption_extension=(".tags",))
    assert [index.caption(record) for record in range(2)] == ["text of a", "from a file"]


@pytest.mark.parametrize(
    "lines",
    ["image_dir = 3\nmetadata_file = 'meta.json'", "image_dir = 'cats'\nmetadata_file = 3", "metadata_file = 3"],
)
def test_a_bad_value_draws_no_second_complaint(tmp_path: Path, lines: str) -> None:
    with pytest.raises(UserError) as error:
        describe_toml(tmp_path, lines)
    assert len(error.value.problems) == 1 and "text is expected, got 3" in str(error.value)


def test_a_subset_needs_a_folder_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image_dir is missing") as error:
        describe_toml(tmp_path, "num_repeats = 2")
    assert "metadata_file with full paths" in str(error.value)

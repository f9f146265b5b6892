"""What is known of a new word before a model is loaded, and the sentences trained in the place of captions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import train_textual_inversion
from library.core.errors import Problems, UserError
from library.data.captions.caption_changes import CaptionChanges
from library.data.dataset import TrainingDataset
from library.data.index.index import ImageIndex
from library.data.planner import BatchRequest
from library.models.identify import identify
from library.options.embedding import EmbeddingOptions
from library.options.parse import parse_options
from library.options.scripts import SCRIPTS
from library.options.text import TextOptions
from library.text.aliases import Alias
from library.text.templates import object_template
from library.training.checks.new_word import check_new_word, check_word_in_captions, with_template
from library.training.checks.preflight import check_embedding_run
from tests.data.data_helpers import (
    captions_in,
    index_of,
    make_dataset,
    make_subset,
    noise_of,
    save_picture,
    toy_tokenize,
    views_of,
)
from tests.training.runs import ROOT, environment
from tests.training.styles import CAPTION_FILES, PICTURES, SIZES, style_words


def problems_of(model: Path, data: list[str], out: Path, *words: str) -> list[str]:
    """Everything that is told of a run that must be refused before the model is loaded, as "where: what"."""
    base = ["--pretrained_model_name_or_path", str(model), *data, "--output_dir", str(out), "--max_train_steps", "1"]
    with pytest.raises(UserError) as caught:
        train_textual_inversion.main([*base, *words])
    assert not out.exists()
    return [f"{problem.where}: {problem.what}" for problem in caught.value.problems]


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> list[str]:
    return style_words(CAPTION_FILES, "zumira", photos, tmp_path / "data")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "command line: --token_string is missing"),
        (["--token_string", "zu mira"], "--token_string: must be one word without blanks, got 'zu mira'"),
        (["--token_string", "dog"], "--token_string: CLIP knows 'dog' already, as a word of its own"),
        (["--token_string", "<|endoftext|>"], "--token_string: CLIP knows '<|endoftext|>' already"),
        (["--token_string", "zulara"], "--token_string: no training picture has 'zulara' in its caption"),
        (["--token_string", "umira"], "--token_string: no training picture has 'umira' in its caption"),
        (["--weighted_captions"], "--weighted_captions: weights in captions are not available for Textual Inversion"),
        (
            ["--use_object_template", "--use_style_template"],
            "--use_object_template, --use_style_template: an embedding",
        ),
        (["--num_vectors_per_token", "76"], "--num_vectors_per_token: a caption of 75 tokens has no room for 76"),
        (["--num_vectors_per_token", "0"], "--num_vectors_per_token: must be 1 or more, got 0"),
        (["--init_word", " "], "--init_word: must not be empty or blank"),
        (["--save_model_as", "ckpt"], "--save_model_as: 'ckpt' is not available"),
        (["--weights", "none.safetensors"], "none.safetensors: no such file"),
        (["--train_text_encoder"], "command line: --train_text_encoder is not an option"),
        (["--cache_text_encoder_outputs"], "--cache_text_encoder_outputs: the embedding changes what the text encoder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_trained_is_refused(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path, words: list[str], expected: str
) -> None:
    given = words if not words or words[0] == "--token_string" else ["--token_string", "zumira", *words]
    (told,) = problems_of(tiny_models["sd1"], data, tmp_path / "out", *given)
    assert told.startswith(expected)


def test_everything_is_told_at_once(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    save_file({"lora_unet_a.lora_down.weight": torch.ones(4, 8)}, file)
    words = ["--token_string", "dog", "--weights", str(file), "--init_word", "cat", "--weighted_captions"]
    told = problems_of(tiny_models["sd1"], data, tmp_path / "out", *words)
    assert len(told) == 4
    assert f"{file}: this is a LoRA, no embedding" in told
    assert "--weights, --init_word: the embedding of the file is what training starts from" in told


def test_embeddings_that_do_not_fit_are_refused(tiny_models: dict[str, Path], data: list[str], tmp_path: Path) -> None:
    wide, file = tmp_path / "wide.safetensors", tmp_path / "own.safetensors"
    save_file({"emb_params": torch.ones(2, 768)}, wide)
    save_file({"emb_params": torch.ones(2, 32)}, file)
    words = ["--token_string", "zumira", "--weights"]
    (told,) = problems_of(tiny_models["sd1"], data, tmp_path / "out", *words, str(wide))
    assert told.startswith(f"{wide}: its vectors have 768 numbers, and those of sd1.safetensors")
    count = ["--num_vectors_per_token", "3"]
    (told,) = problems_of(tiny_models["sd1"], data, tmp_path / "out", *words, str(file), *count)
    assert told == f"--weights, --num_vectors_per_token: {file} holds 2 vectors, not 3"


@pytest.mark.parametrize(
    ("options", "ids", "line"),
    [
        ({}, (), "new word: zumira, 1 vector, starting as an average word"),
        ({"init_word": "cat"}, (2368,), "new word: zumira, 1 vector, starting as 'cat'"),
        (
            {"init_word": "cat", "num_vectors_per_token": 4},
            (2368,),
            "new word: zumira, 4 vectors, starting as 'cat', whose 1 token is repeated",
        ),
        (
            {"init_word": "a photo", "num_vectors_per_token": 4},
            (320, 1125),
            "new word: zumira, 4 vectors, starting as 'a photo', whose 2 tokens are taken in turn",
        ),
        (
            {"init_word": "a photo"},
            (320, 1125),
            "new word: zumira, 1 vector, starting as 'a photo': the first 1 of its 2 tokens",
        ),
    ],
)
def test_where_the_vectors_start_is_told(options: dict[str, object], ids: tuple[int, ...], line: str) -> None:
    problems = Problems()
    word = check_new_word(EmbeddingOptions(token_string="zumira", **options), None, problems)  # type: ignore[arg-type]
    assert word is not None and not problems
    assert (word.start.word_ids, word.notes) == (ids, (line,))
    assert word.alias == Alias("zumira", int(str(options.get("num_vectors_per_token", 1))))


def test_a_file_says_how_many_vectors_there_are(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    vectors = torch.arange(96.0).reshape(3, 32)
    save_file({"emb_params": vectors}, tmp_path / "zu.safetensors")
    options = EmbeddingOptions(token_string="zumira", weights=str(tmp_path / "zu.safetensors"))
    problems = Problems()
    word = check_new_word(options, identify(tiny_models["sd1"]), problems)
    assert word is not None and word.alias.count == 3
    assert word.start.vectors is not None and torch.equal(word.start.vectors, vectors)
    assert word.notes == (f"new word: zumira, 3 vectors, going on from {options.weights}",)


def index_with(root: Path, captions: list[str], reg: list[str], changes: CaptionChanges) -> ImageIndex:
    for folder, texts in (("own", captions), ("reg", reg)):
        for number, text in enumerate(texts):
            save_picture(root / folder / f"{number}.png", seed=number)
            (root / folder / f"{number}.txt").write_text(text, encoding="utf-8")
    subsets = [make_subset(root / "own", class_tokens=None, caption_changes=changes)]
    if reg:
        subsets.append(make_subset(root / "reg", class_tokens=None, is_reg=True))
    return index_of(make_dataset(*subsets))


def told_of(index: ImageIndex, count: int = 1, **options: object) -> tuple[list[str], list[str]]:
    problems = Problems()
    text = TextOptions(**options)  # type: ignore[arg-type]
    notes = check_word_in_captions(index, Alias("zumira", count), problems, text)
    return [problem.what for problem in problems], notes


def test_pictures_without_the_word_are_told(tmp_path: Path) -> None:
    index = index_with(tmp_path, ["zumira", "a dog", "Zumira!", "zumiracle"], ["a dog", "zumira"], CaptionChanges())
    problems, (warning, note) = told_of(index)
    assert not problems
    assert warning == (
        "warning: 2 of 4 training pictures do not have 'zumira' in their caption and teach it nothing: 1.png, 3.png"
    )
    assert note.startswith("note: 1 regularisation pictures do not have 'zumira' in their caption; they teach")


def test_regularisation_alone_does_not_count(tmp_path: Path) -> None:
    index = index_with(tmp_path, ["a dog"], ["zumira"], CaptionChanges())
    (problem,), notes = told_of(index)
    assert problem.startswith("no training picture has 'zumira'") and not notes


@pytest.mark.parametrize("changes", [{"prefix": "photo of zumira,"}, {"suffix": ", zumira"}])
def test_prefix_and_suffix_count(tmp_path: Path, changes: dict[str, str]) -> None:
    assert told_of(index_with(tmp_path, ["a dog", "a cat"], [], CaptionChanges(**changes))) == ([], [])


def test_a_wildcard_and_a_later_line_count(tmp_path: Path) -> None:
    index = index_with(tmp_path, ["{zumira|a cat}", "a dog\nmy zumira"], [], CaptionChanges(wildcard=True))
    assert told_of(index) == ([], [])


LONG = ", ".join(["cat"] * 38)  # 75 tokens


def test_the_word_must_be_within_what_is_read(tmp_path: Path) -> None:
    index = index_with(tmp_path, [f"{LONG} zumira", f"{LONG}, zumira"], [], CaptionChanges())
    (problem,), notes = told_of(index)
    assert not notes and problem.startswith("'zumira' stands behind the 75 tokens that are read of a caption")
    assert told_of(index, max_token_length=150) == ([], [])
    problems = Problems()
    check_word_in_captions(index, Alias("zumira", 1), problems)
    assert [problem.fix for problem in problems] == ["put the word first, or give --max_token_length 150"]
    problems = Problems()
    check_word_in_captions(index, Alias("zumira", 160), problems, TextOptions(max_token_length=225))
    assert [problem.fix for problem in problems] == ["put the word first, give fewer vectors"]


def test_pictures_that_lose_the_word_are_told(tmp_path: Path) -> None:
    index = index_with(tmp_path, ["zumira", f"{LONG}, zumira", f"zumira {LONG}", "a dog"], [], CaptionChanges())
    problems, (lacking, cut) = told_of(index)
    assert not problems and "1 of 4 training pictures do not have" in lacking and lacking.endswith("3.png")
    assert cut == (
        "warning: 1 of 4 training pictures have 'zumira' in their caption, but not whole within the 75 tokens that are"
        " read: 1.png; put the word first, or give --max_token_length 150"
    )


@pytest.mark.parametrize(("before", "count", "is_read"), [(37, 1, True), (37, 2, False), (36, 3, True), (36, 4, False)])
def test_all_vectors_of_the_word_must_be_read(tmp_path: Path, before: int, count: int, is_read: bool) -> None:
    index = index_with(tmp_path, ["cat, " * before + "zumira"], [], CaptionChanges())
    assert (told_of(index, count)[0] == []) == is_read


@pytest.mark.parametrize(
    ("captions", "changes", "is_read"),
    [
        ([f"{LONG}, zumira"], CaptionChanges(shuffle=True), True),
        ([f"{LONG}, zumira"], CaptionChanges(tag_dropout_rate=0.5), True),
        ([f"{LONG}, zumira, dog"], CaptionChanges(shuffle=True, keep_tokens=39), False),
        (["zumira"], CaptionChanges(prefix=LONG), False),
        ([LONG], CaptionChanges(suffix="zumira"), False),
        ([f"{LONG} zumira\nzumira"], CaptionChanges(wildcard=True), True),
        ([f"{{{LONG}|a}} zumira"], CaptionChanges(wildcard=True), True),
        ([f"{{{LONG}|{LONG}}} zumira"], CaptionChanges(wildcard=True), False),
        (["zumira"], CaptionChanges(dropout_rate=1.0), False),
        (["zumira"], CaptionChanges(dropout_every_n_epochs=1), False),
    ],
)
def test_what_becomes_of_a_caption_decides(
    tmp_path: Path, captions: list[str], changes: CaptionChanges, is_read: bool
) -> None:
    assert (told_of(index_with(tmp_path, captions, [], changes))[0] == []) == is_read


def test_a_word_behind_the_limit_stops_the_run(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    data = style_words(CAPTION_FILES, f"{LONG}, zumira", photos, tmp_path / "data")
    (told,) = problems_of(tiny_models["sd1"], data, tmp_path / "out", "--token_string", "zumira")
    assert told.startswith("--token_string: 'zumira' stands behind the 75 tokens")
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *data, "--output_dir", str(tmp_path / "out")]
    words += ["--token_string", "zumira", "--max_train_steps", "1", "--max_token_length", "150"]
    groups = SCRIPTS["train_textual_inversion.py"].groups
    assert check_embedding_run(parse_options("train_textual_inversion.py", "", groups, words)).notes == ()


@pytest.mark.parametrize(
    "words",
    [
        ["--shuffle_caption"],
        ["--caption_tag_dropout_rate", "0.2"],
        ["--token_warmup_step", "0.5"],
        ["--shuffle_caption", "--keep_tokens", "1"],
        ["--keep_tokens_separator", "|||"],
        ["--secondary_separator", ";;;"],
    ],
    ids=lambda words: words[-2] if len(words) > 1 else words[0],
)
def test_templates_have_no_tags(tiny_models: dict[str, Path], photos: Path, tmp_path: Path, words: list[str]) -> None:
    data = style_words(CAPTION_FILES, "zumira ||| a;;;b", photos, tmp_path / "data", with_reg=True)
    told = problems_of(
        tiny_models["sd1"], data, tmp_path / "out", "--token_string", "zumira", "--use_style_template", *words
    )
    asked = [word.removeprefix("--") for word in words if word.startswith("--")]
    assert [line.split(" (")[0] for line in told] == asked
    assert all("the sentences of a template have no tags" in line for line in told)


def test_templates_are_drawn_anew_at_each_use_and_regularisation_keeps_its_captions(tmp_path: Path) -> None:
    plain = index_with(tmp_path, ["a dog, red", "a cat"], ["some dog"], CaptionChanges(prefix="ink,"))
    index = with_template(plain, object_template("zumira"))
    assert told_of(index)[0] == []
    views = views_of(index, 7)
    dataset = TrainingDataset(views, toy_tokenize, noise_of(views))

    def captions(epoch: int) -> list[str]:
        request = BatchRequest(
            epoch=epoch, position=0, records=(0, 1, 2), repeats=(0, 0, 0), closes_update=True, loss_scale=1
        )
        return captions_in(dataset[request].input_ids)

    drawn = [captions(epoch) for epoch in range(12)]
    own = [caption for row in drawn for caption in row[:2]]
    assert len(set(own)) > 20
    assert all(caption.startswith("ink, ") and caption.count("zumira") == 1 for caption in own)
    assert not any(set(caption) & set("{}|") or "dog" in caption for caption in own)
    assert {row[2] for row in drawn} == {"some dog"}
    assert captions(3) == drawn[3]
    assert [plain.caption(record) for record in range(3)] == ["a dog, red", "a cat", "some dog"]


def test_braces_around_templates_are_not_taken_for_wildcards(
    tiny_models: dict[str, Path], data: list[str], tmp_path: Path
) -> None:
    words = ["--token_string", "zumira", "--use_object_template", "--caption_prefix", "{x}"]
    (told,) = problems_of(tiny_models["sd1"], data, tmp_path / "out", *words)
    assert "its braces would become wildcards, since templates have some" in told


def test_no_model_library_is_imported_for_a_mistake(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    shutil.copy(photos / PICTURES[0], folder)
    (folder / "cat.txt").write_text("a cat", encoding="utf-8")
    words = ["--pretrained_model_name_or_path", str(tiny_models["sd1"]), *SIZES, "--train_data_dir", str(folder)]
    words += ["--output_dir", str(tmp_path / "out"), "--max_train_steps", "1", "--token_string", "zumira"]
    code = (
        "import sys, json, train_textual_inversion as t\n"
        "from library.core.errors import UserError\n"
        "try:\n    t.main(json.loads(sys.argv[1]))\n"
        "except UserError as error:\n    print(error)\n"
        "print([name for name in ('diffusers', 'accelerate', 'library.models.load') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", code, json.dumps(words)]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert "no training picture has 'zumira' in its caption" in result.stdout
    assert result.stdout.strip().endswith("[]"), result.stdout + result.stderr[-2000:]

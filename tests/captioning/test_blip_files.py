"""Which BLIP model is meant, whether all of it is there, and what is fetched from the Hub."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from library.captioning.blip_files import (
    Source,
    bring,
    choose_files,
    find_source,
    option_problems,
    weights_of,
    what_is_missing,
)
from library.core.errors import UserError
from library.options.captioning import DEFAULT_BLIP, BlipOptions
from tests.hub_client_process import answer_of, hub_environment, start_client
from tests.hub_server import Repo, served

PUBLIC = [
    *(".gitattributes", "README.md", "config.json", "model.safetensors", "preprocessor_config.json"),
    *("pytorch_model.bin", "special_tokens_map.json", "tf_model.h5", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.txt", "onnx/model.onnx", "flax_model.msgpack"),
]


def make_folder(folder: Path, config: dict[str, Any] | None = None, without: str = "") -> Path:
    """The names of a BLIP model, and its config.json."""
    folder.mkdir(parents=True)
    for name in ("preprocessor_config.json", "tokenizer.json", "model.safetensors"):
        if name != without:
            (folder / name).write_bytes(b"")
    usual = {"model_type": "blip", "architectures": ["BlipForConditionalGeneration"]}
    if without != "config.json":
        (folder / "config.json").write_text(json.dumps(usual if config is None else {**usual, **config}))
    return folder


def find(name: str | Path, **options: Any) -> Source:
    return find_source(BlipOptions(caption_weights=str(name), **options), {"caption_weights", *options})


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, []),
        ({"beam_search": True, "num_beams": 3}, []),
        ({"top_p": 0.5}, []),
        ({"num_beams": 3}, ["--num_beams"]),
        ({"beam_search": True, "top_p": 0.9}, ["--top_p"]),
        ({"min_length": 75}, ["--min_length, --max_length"]),
        ({"max_length": 5, "num_beams": 2}, ["--min_length, --max_length", "--num_beams"]),
    ],
)
def test_options_that_contradict_or_do_nothing_are_told(options: dict[str, Any], flags: list[str]) -> None:
    assert [problem.where for problem in option_problems(BlipOptions(**options), options)] == flags


# --- which model ------------------------------------------------------------------------------------------------------


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "モデル")
    assert find(folder) == Source(folder, None)
    assert bring(find(folder), force_download=False) == folder


def test_a_folder_comes_before_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make_folder(tmp_path / "owner" / "name")
    assert find("owner/name") == Source(Path("owner/name"), None)
    assert find("owner/other", model_dir="kept") == Source(Path("kept/owner_other"), "owner/other")


def test_models_of_the_hub_are_kept_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path))
    assert find(DEFAULT_BLIP) == Source(tmp_path / "sd_atelier" / DEFAULT_BLIP.replace("/", "_"), DEFAULT_BLIP)


def test_what_other_programs_fetched_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path), raising=False)
    kept, commit = tmp_path / "models--owner--name", "a" * 40
    snapshot = make_folder(kept / "snapshots" / commit)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    assert find("owner/name") == Source(snapshot, "owner/name")
    assert bring(find("owner/name"), force_download=False) == snapshot
    assert find("owner/name", force_download=True).folder != snapshot
    (snapshot / "model.safetensors").unlink()
    assert find("owner/name").folder != snapshot


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://storage.googleapis.com/blip/model_large_caption.pth", "web address"),
        ("https://huggingface.co/Salesforce/blip-image-captioning-large", "web address"),
        ("models/model_large_caption.pth", "single file"),
        ("model_large_caption.PTH", "single file"),
        ("blip.safetensors", "single file"),
        ("models/a/b", "no such folder"),
        ("x" * 5000, "no such folder"),
        ("", "no such folder"),
    ],
)
def test_what_is_no_model_is_told_with_one_that_is(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        find(name)
    assert DEFAULT_BLIP in caught.value.problems[0].fix


def test_options_about_the_hub_do_nothing_for_a_folder(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "blip")
    for options in ({"model_dir": "kept"}, {"force_download": True}):
        with pytest.raises(UserError, match="nothing is fetched"):
            find(folder, **options)
    assert find(folder, force_download=False).folder == folder  # says nothing by being given


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "blip-2", "architectures": ["Blip2ForConditionalGeneration"]}, "'blip-2'"),
        ({"model_type": "llava"}, "'llava'"),
        ({"model_type": None}, "None"),
        ({"architectures": ["BlipForQuestionAnswering"]}, "BlipForQuestionAnswering"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path: Path, config: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        find(make_folder(tmp_path / "model", config))


def test_an_adapter_beside_the_model_is_refused(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(UserError, match="adapter"):
        find(folder)


@pytest.mark.parametrize("without", ["config.json", "preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_folder_that_lacks_something_is_told(tmp_path: Path, without: str) -> None:
    folder = make_folder(tmp_path / "model", without=without)
    assert without in (what_is_missing(folder) or "")
    with pytest.raises(UserError, match=without):
        find(folder)


def test_a_config_that_is_none_is_told(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model")
    (folder / "config.json").write_text("[")
    with pytest.raises(UserError, match=r"config\.json.*JSON"):
        find(folder)


@pytest.mark.parametrize("content", ["[", "[]", "{}", '{"weight_map": {"a": "../piece"}}', '{"weight_map": 3}'])
def test_an_index_that_makes_no_sense_counts_as_no_weights(tmp_path: Path, content: str) -> None:
    folder = make_folder(tmp_path / "model", without="model.safetensors")
    (tmp_path / "piece").write_bytes(b"")
    (folder / "model.safetensors.index.json").write_text(content)
    assert weights_of(folder) is None


def test_all_pieces_of_the_weights_are_needed(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "model", without="model.safetensors")
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    (folder / names[0]).write_bytes(b"")
    assert weights_of(folder) is None
    (folder / names[1]).write_bytes(b"")
    assert weights_of(folder) == "model.safetensors"


# --- what is fetched --------------------------------------------------------------------------------------------------


def test_of_a_public_repository_only_what_is_needed_is_fetched() -> None:
    chosen = choose_files(PUBLIC, "")
    assert chosen[0] == "config.json" and chosen[-1] == "model.safetensors"
    assert sorted(chosen[1:-1]) == [
        *("preprocessor_config.json", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    ]


def test_weights_come_last_and_in_the_best_form() -> None:
    pieces = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    index = "pytorch_model.bin.index.json"
    assert choose_files(["config.json", index, *pieces[::-1]], "") == ["config.json", *pieces, index]
    assert choose_files(["config.json", index, *pieces, "pytorch_model.bin"], "")[-1] == "pytorch_model.bin"
    assert choose_files(["config.json", "pytorch_model.bin", "sub/model.safetensors"], "")[-1] == "pytorch_model.bin"


@pytest.mark.parametrize("names", [[], ["model.pth", "README.md"], ["config.json"], ["model.safetensors"]])
def test_a_repository_without_a_model_is_refused(names: list[str]) -> None:
    with pytest.raises(UserError, match="no model for transformers"):
        choose_files(names, "--caption_weights owner/name")


def test_what_is_there_is_not_asked_for_and_what_is_not_is(tmp_path: Path) -> None:
    """The tests run with HF_HUB_OFFLINE."""
    source = find("owner/name", model_dir=str(tmp_path))
    make_folder(source.folder)
    assert bring(source, force_download=False) == source.folder
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        bring(source, force_download=True)
    (source.folder / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="HF_HUB_OFFLINE"):
        bring(source, force_download=False)


_BRING = """
import json, sys
from library.captioning.blip_files import bring, find_source
from library.core.errors import UserError
from library.options.captioning import BlipOptions
name, folder = json.load(sys.stdin)
try:
    print(json.dumps(str(bring(find_source(BlipOptions(caption_weights=name, model_dir=folder), ()), False))))
except UserError as error:
    print(json.dumps(str(error)))
"""


def test_of_another_model_only_the_config_is_fetched(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "vqa", {"architectures": ["BlipForQuestionAnswering"]})
    with served() as hub:
        hub.repos["model", "owner/vqa"] = Repo.of_folder(folder)
        environment = hub_environment(tmp_path / "home", hub.endpoint)
        said, _ = answer_of(start_client(_BRING, ["owner/vqa", str(tmp_path / "kept")], environment))
        assert "--caption_weights owner/vqa: this BLIP is a BlipForQuestionAnswering" in said
        assert hub.downloads("owner/vqa") == ["config.json"]

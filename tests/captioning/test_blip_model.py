"""Folders that hold BLIP in the forms one meets, and those that do not: nothing is made up, nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from library.captioning.blip import BlipCaptioner
from library.core.errors import UserError
from library.options.captioning import BlipOptions
from tests.captioning.tiny_blip import make_tiny_blip

WEIGHTS = "model.safetensors"
FORM = "preprocessor_config.json"


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "blip"))


def load(folder: Path) -> BlipCaptioner:
    return BlipCaptioner(folder, BlipOptions(), torch.device("cpu"))


def caption(folder: Path, photos: Path) -> str:
    model, path = load(folder), photos / "cat.jpg"
    return model.describe([model.read(path)], [path])[0]


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


# --- other forms of the same model ------------------------------------------------------------------------------------


def as_public(folder: Path) -> None:
    """As the public repositories are: words line by line, settings of 2022 in config.json, weights also of heads."""
    words = BertTokenizer.from_pretrained(folder).get_vocab()
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(words, key=lambda word: words[word])))
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": true, "tokenizer_class": "BertTokenizer"}')
    config = json.loads((folder / "config.json").read_text())
    old = {"max_length": 20, "num_beams": 4, "top_k": 50, "temperature": 3.0, "no_repeat_ngram_size": 1}
    change(folder / "config.json", text_config={**config["text_config"], **old}, torch_dtype="float32")
    (folder / "generation_config.json").unlink()
    save_file({**load_file(folder / WEIGHTS), "itm_head.weight": torch.zeros(2, 2)}, folder / WEIGHTS)


def as_one_processor(folder: Path) -> None:
    """As transformers 5 saves it when all is saved at once."""
    processor = BlipProcessor(BlipImageProcessorPil.from_pretrained(folder), BertTokenizer.from_pretrained(folder))
    (folder / FORM).unlink()
    processor.save_pretrained(folder)
    assert not (folder / FORM).exists()


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def as_pieces(folder: Path) -> None:
    tensors = list(load_file(folder / WEIGHTS).items())
    (folder / WEIGHTS).unlink()
    table: dict[str, str] = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = dict(tensors[number - 1 :: 2])
        save_file(part, folder / name)
        table |= dict.fromkeys(part, name)
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": table}))


@pytest.mark.parametrize("form", [as_public, as_one_processor, as_pickle, as_pieces])
def test_other_forms_write_the_same(original: Path, folder: Path, photos: Path, form: Callable[[Path], None]) -> None:
    form(folder)
    assert caption(folder, photos) == caption(original, photos)


def test_half_precision_is_computed_in_float32(folder: Path) -> None:
    save_file({name: weight.half() for name, weight in load_file(folder / WEIGHTS).items()}, folder / WEIGHTS)
    change(folder / "config.json", dtype="float16")
    network = load(folder)._network
    assert {weight.dtype for weight in network.parameters()} == {torch.float32}
    assert not network.training


# --- what is refused --------------------------------------------------------------------------------------------------


class _Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.mark.parametrize("in_zip", [True, False])
def test_a_pickle_runs_nothing(folder: Path, tmp_path: Path, in_zip: bool) -> None:
    trap = {**load_file(folder / WEIGHTS), "trap": _Trap(tmp_path / "sprung")}
    (folder / WEIGHTS).unlink()
    if in_zip:
        torch.save(trap, folder / "pytorch_model.bin")
    else:
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(trap, protocol=2))
    with pytest.raises(UserError, match=r"hold more than weights, and are not opened\n.*safetensors") as caught:
        load(folder)
    assert "weights_only" not in str(caught.value)  # torch's advice how to run it
    assert not (tmp_path / "sprung").exists()


def test_a_folder_cannot_name_code(folder: Path, original: Path, photos: Path, tmp_path: Path) -> None:
    """Classes and kernels that its files ask for are not looked at."""
    module = f"import os\nos.mkdir({str(tmp_path / 'sprung')!r})\n"
    (folder / "theirs.py").write_text(module)
    theirs = {"auto_map": {"AutoConfig": "theirs.A", "AutoModel": "theirs.B", "AutoTokenizer": ["theirs.C", None]}}
    kernels = {"_attn_implementation": "owner/kernel", "attn_implementation": "owner/kernel"}
    change(folder / "config.json", **theirs, **kernels)
    change(folder / "tokenizer_config.json", **theirs, tokenizer_class="Theirs")
    change(folder / FORM, **theirs, image_processor_type="Theirs")
    assert caption(folder, photos) == caption(original, photos)
    assert not (tmp_path / "sprung").exists()


def _without(folder: Path, word: str) -> None:
    save_file(
        {name: value for name, value in load_file(folder / WEIGHTS).items() if word not in name}, folder / WEIGHTS
    )


def _wider(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], "intermediate_size": 80})


def _not_a_number(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["vision_model.post_layernorm.weight"][0] = torch.nan
    save_file(tensors, folder / WEIGHTS)


def _words_of(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(folder / "config.json", text_config={**config["text_config"], **values})


def _a_page(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"<!DOCTYPE html>")


def _no_words(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def _other_words(folder: Path) -> None:
    words = [f"word{number}" for number in range(40)]
    BertTokenizer(vocab={word: n for n, word in enumerate([*words, "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}
    ).save_pretrained(folder)  # fmt: skip


MISTAKES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a layer is missing": (lambda folder: _without(folder, "crossattention"), "weights are missing .*crossattention"),
    "of another size": (_wider, "6 weights are missing or of another size .*intermediate"),
    "no number": (_not_a_number, "post_layernorm"),
    "cut off": (lambda folder: os.truncate(folder / WEIGHTS, 1000), "its weights cannot be read"),
    "a web page": (_a_page, "weights are in no form that torch knows"),
    "no beginning": (lambda folder: _words_of(folder, bos_token_id=None), "bos_token_id .* got None|config.json"),
    "beginning below all": (lambda folder: _words_of(folder, bos_token_id=-1), "bos_token_id .* got -1"),
    "beginning beyond all": (lambda folder: _words_of(folder, bos_token_id=10**6), "bos_token_id .* got 1000000"),
    "no end": (lambda folder: _words_of(folder, sep_token_id=None), "sep_token_id .* got None|config.json"),
    "filled with nothing": (lambda folder: _words_of(folder, pad_token_id=-1), "pad_token_id .* got -1"),
    "no words": (_no_words, "tokenizer"),
    "broken words": (lambda folder: (folder / "tokenizer.json").write_text("{"), "tokenizer"),
    "words of another model": (_other_words, "is not that of the model|does not know"),
    "config of no sense": (
        lambda folder: change(folder / "config.json", text_config=3),
        "its config.json cannot be read",
    ),
    "shortest edge": (lambda folder: change(folder / FORM, size={"shortest_edge": 32}), "otherwise than BLIP"),
    "cropped": (lambda folder: change(folder / FORM, do_center_crop=True), "otherwise than BLIP"),
    "not scaled": (lambda folder: change(folder / FORM, do_resize=False), "otherwise than BLIP"),
    "by nothing": (lambda folder: change(folder / FORM, image_std=[1, 0, 1]), "otherwise than BLIP"),
    "two colours": (lambda folder: change(folder / FORM, image_mean=[1, 0]), "its pictures cannot be read"),
    "another size": (lambda folder: change(folder / FORM, size={"height": 32, "width": 48}), "takes 32x32"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_models_that_are_not_sound_are_refused(folder: Path, mistake: str) -> None:
    spoil, said = MISTAKES[mistake]
    spoil(folder)
    with pytest.raises(UserError, match=said) as caught:
        load(folder)
    assert caught.value.problems[0].where == str(folder)

"""BLIP's captions: what transformers itself would write, the same from run to run and in every batch."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertTokenizer, BlipForConditionalGeneration, BlipImageProcessorPil
from transformers.generation import MinLengthLogitsProcessor, RepetitionPenaltyLogitsProcessor, TopPLogitsWarper

import library.captioning.blip_choice
from library.captioning.blip import BlipCaptioner, tidy
from library.captioning.blip_model import load_form, text_config
from library.captioning.describer import Decoded
from library.core.errors import UserError
from library.core.sizes import Size
from library.data.pictures.images import load_pixels
from library.options.captioning import BlipOptions
from tests.captioning.tiny_blip import make_tiny_blip

CPU = torch.device("cpu")
COUNT = 8
PROMPT = "a picture of"
START = 4  # tokens: the prompt's, and one for the beginning


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_blip(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def pictures(photos: Path) -> list[Path]:
    return sorted(path for path in photos.iterdir() if path.suffix in (".jpg", ".png", ".webp"))[:COUNT]


def captioner(folder: Path, **options: Any) -> BlipCaptioner:
    return BlipCaptioner(folder, BlipOptions(**{"max_length": 24, **options}), CPU)


_READ: dict[Path, Decoded] = {}  # as all models here read them


def captions(model: BlipCaptioner, pictures: Sequence[Path], batch: int = 1) -> list[str]:
    _READ.update({path: model.read(path) for path in pictures if path not in _READ})
    read = [_READ[path] for path in pictures]
    parts = [slice(start, start + batch) for start in range(0, len(pictures), batch)]
    return [text for part in parts for text in model.describe(read[part], pictures[part])]


def words_of(folder: Path, text: str) -> int:
    return len(BertTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"])


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_transformers_own_processor(tmp_path: Path, photos: Path) -> None:
    """To the rounding of float32 where nothing is scaled; our scaling differs a little (Lanczos instead of bicubic)."""
    processor = BlipImageProcessorPil(size={"height": 384, "width": 384})
    processor.save_pretrained(tmp_path)
    form, path = load_form(tmp_path), photos / "astronaut.jpg"
    assert form.size == Size(384, 384)
    pixels = load_pixels(path, form.size, (0, 0, 384, 384))
    own = form.of(pixels)
    assert own.shape == (3, 384, 384) and own.dtype == np.float32 and own.flags.c_contiguous
    same = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    np.testing.assert_allclose(own, same, atol=1e-5)
    scaled = processor(Image.open(path), return_tensors="np")["pixel_values"][0]
    assert np.abs(own - scaled).mean() < 0.03 < scaled.std() / 20


def test_pictures_are_squeezed_to_the_square(folder: Path, tmp_path: Path) -> None:
    wide = Image.new("RGB", (320, 80), "red")
    wide.paste("blue", (160, 0, 320, 80))
    wide.save(tmp_path / "wide.png")
    numbers = torch.from_numpy(captioner(folder).read(tmp_path / "wide.png"))
    assert numbers.shape == (3, 32, 32)
    assert (numbers[0, :, :14] > numbers[2, :, :14]).all() and (numbers[0, :, 18:] < numbers[2, :, 18:]).all()


def test_a_broken_picture_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"broken\.jpg"):
        captioner(folder).read(tmp_path / "broken.jpg")


# --- the same from run to run and in every batch ----------------------------------------------------------------------

WAYS: dict[str, dict[str, Any]] = {
    "drawn": {},
    "all words": {"top_p": 1.0, "repetition_penalty": 1.0},
    "likeliest": {"beam_search": True},
    "beams": {"beam_search": True, "num_beams": 3},
}


@pytest.mark.parametrize("way", WAYS)
def test_company_and_restarts_change_nothing(folder: Path, pictures: list[Path], way: str) -> None:
    alone = captions(captioner(folder, **WAYS[way]), pictures)
    again = captioner(folder, **WAYS[way])
    torch.manual_seed(5)  # the global generator has no say
    before = torch.get_rng_state()
    for batch in (2, 3, COUNT):
        assert captions(again, pictures, batch) == alone
    backwards = captions(again, pictures[::-1], COUNT)
    assert backwards[::-1] == alone
    assert torch.equal(torch.get_rng_state(), before)
    assert len(set(alone)) >= COUNT - 2 and all(alone)
    assert all(len(text.splitlines()) == 1 and text == text.strip() for text in alone)


def test_close_calls_are_made_again_alone(folder: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = captioner(folder)
    sizes: list[int] = []
    model._network.vision_model.register_forward_hook(lambda _net, _args, out: sizes.append(len(out[0])))
    alone = captions(model, pictures)
    assert sizes == [1] * COUNT
    sizes.clear()
    monkeypatch.setattr(library.captioning.blip_choice, "TOLERANCE", 0.2)  # so that many are close
    assert captions(model, pictures, COUNT) == alone
    assert sizes[0] == COUNT and set(sizes[1:]) == {1}
    sizes.clear()
    monkeypatch.setattr(library.captioning.blip_choice, "TOLERANCE", 0.0)  # none
    assert captions(model, pictures, COUNT) == alone
    assert sizes == [COUNT]


def test_a_caption_depends_on_name_content_and_seed_but_not_on_the_folder(
    folder: Path, pictures: list[Path], tmp_path: Path
) -> None:
    model = captioner(folder)
    elsewhere = [Path(shutil.copy(path, tmp_path)) for path in pictures]
    assert captions(model, elsewhere) == captions(model, pictures)
    renamed = [path.rename(path.with_name(f"another_{path.name}")) for path in elsewhere]
    differing = [a != b for a, b in zip(captions(model, renamed), captions(model, pictures), strict=True)]
    assert sum(differing) >= COUNT - 1
    seeded = captions(captioner(folder, seed=43), pictures)
    assert sum(a != b for a, b in zip(seeded, captions(model, pictures), strict=True)) >= COUNT - 1
    one_name = [tmp_path / str(number) / "same.png" for number in range(2)]
    for place, colour in zip(one_name, ("red", "#fe0000"), strict=True):  # nothing that the model could tell apart
        place.parent.mkdir()
        Image.new("RGB", (32, 32), colour).save(place)
    first, second = captions(model, one_name)
    assert first != second


# --- transformers as the judge ----------------------------------------------------------------------------------------


def own_captions(folder: Path, model: BlipCaptioner, pictures: Sequence[Path], **words: Any) -> list[str]:
    """What transformers' BLIP writes when it is used as its documentation says."""
    network = BlipForConditionalGeneration.from_pretrained(folder)
    tokenizer = BertTokenizer.from_pretrained(folder)
    found = []
    never = [0, 1, 2, 4, len(tokenizer), len(tokenizer) + 1]
    for path in pictures:
        values = torch.from_numpy(model.read(path))[None]
        asked = tokenizer(PROMPT, return_tensors="pt")
        with torch.no_grad():
            row = network.generate(
                values, asked["input_ids"], asked["attention_mask"], do_sample=False, suppress_tokens=never, **words
            )[0]
        found.append(tokenizer.decode(row[START:], skip_special_tokens=True).removeprefix("##"))
    return [tidy(text) for text in found]


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_searches_find_what_transformers_finds(folder: Path, pictures: list[Path], beams: int) -> None:
    limits = {"max_length": 14, "min_length": 6, "num_beams": beams, "repetition_penalty": 1.3}
    model = captioner(folder, beam_search=True, **limits)
    assert captions(model, pictures, 4) == own_captions(folder, model, pictures, **limits)


def test_first_words_come_as_often_as_the_softmax_says(folder: Path, pictures: list[Path]) -> None:
    """The model's own scores through transformers' own processors, against many draws of one picture."""
    draws, penalty, top_p = 3000, 1.5, 0.8
    model = captioner(
        folder, max_length=START + 1, min_length=START + 1, repetition_penalty=penalty, top_p=top_p, prompt=PROMPT
    )
    picture = model.read(pictures[0])
    names = [Path(f"{number}.jpg") for number in range(draws)]
    texts = [
        text for start in range(0, draws, 100) for text in model.describe([picture] * 100, names[start : start + 100])
    ]
    network, tokenizer = model._network, model._tokenizer
    config = text_config(network.config)
    start = torch.tensor([[config.bos_token_id, *tokenizer(PROMPT, add_special_tokens=False)["input_ids"]]])
    with torch.no_grad():
        seen = network.vision_model(torch.from_numpy(picture)[None])[0]
        scores = network.text_decoder(start, encoder_hidden_states=seen).logits[:, -1]
    scores = MinLengthLogitsProcessor(START + 1, int(config.sep_token_id or 0))(
        start, RepetitionPenaltyLogitsProcessor(penalty)(start, scores)
    )
    scores[:, [0, 1, 2, 4, len(tokenizer), len(tokenizer) + 1]] = -torch.inf
    expected = TopPLogitsWarper(top_p)(start, scores).softmax(-1)[0]
    words = {str(tokenizer.decode([number])).removeprefix("##"): number for number in range(len(tokenizer))}
    found = torch.bincount(torch.tensor([words[text] for text in texts]), minlength=len(expected)) / draws
    assert found[expected == 0].sum() == 0
    assert (expected > 0).sum() > 5
    assert (found - expected).abs().max() < 4 * (0.25 / draws) ** 0.5


# --- what the options say ---------------------------------------------------------------------------------------------


def test_lengths_count_the_prompt_and_one_for_the_beginning(folder: Path, pictures: list[Path]) -> None:
    tight = captions(captioner(folder, max_length=12, min_length=11, top_p=1.0), pictures, COUNT)
    lengths = {START + words_of(folder, text) for text in tight}
    assert lengths <= {11, 12} and lengths
    usual = [START + words_of(folder, text) for text in captions(captioner(folder), pictures, COUNT)]
    assert all(5 <= length <= 24 for length in usual) and len(set(usual)) > 3


def test_the_prompt_guides_and_is_not_written(folder: Path, pictures: list[Path]) -> None:
    guided, free = (captions(captioner(folder, prompt=prompt), pictures, COUNT) for prompt in (PROMPT, "  "))
    assert guided != free and all(free)
    assert not any(text.startswith(PROMPT) for text in guided)
    assert captions(captioner(folder, prompt=" A  picture OF "), pictures, COUNT) == guided


def test_a_caption_that_ends_at_once_is_empty(folder: Path, pictures: list[Path]) -> None:
    model = captioner(folder, min_length=0)
    model._network.text_decoder.cls.predictions.bias.data[3] = 100.0
    assert captions(model, pictures[:2], 2) == ["", ""]
    assert all(model.why_empty())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": START, "min_length": 0}, "takes 4 tokens"),
        ({"prompt": "a 猫"}, "does not know"),
        ({"prompt": "a [SEP]"}, "does not know"),
        ({"max_length": 97}, "96 tokens at most"),
    ],
)
def test_what_the_model_cannot_do_is_told(folder: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        captioner(folder, **options)


def test_texts_are_joined_once() -> None:
    joined = BlipCaptioner.joined
    once = joined(None, "a cat, ", "a dog")  # type: ignore[arg-type]  # it asks nothing of the model
    assert once == "a cat, a dog" == joined(None, once, "a dog")  # type: ignore[arg-type]
    assert joined(None, "a dog", "a dog") == "a dog"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("raw", "written"),
    [
        ("a dog , a cat and a bird .", "a dog, a cat and a bird."),
        ("  a man ' s t - shirt\n in  red", "a man's t-shirt in red"),
        ("they don ' t know ' stop ' signs", "they don't know ' stop ' signs"),
        ("rock ' n ' roll - night", "rock ' n ' roll-night"),
        ("a 3 . 5 inch disk ! ?", "a 3. 5 inch disk!?"),
        ("", ""),
    ],
)
def test_blanks_are_tidied(raw: str, written: str) -> None:
    assert tidy(raw) == written

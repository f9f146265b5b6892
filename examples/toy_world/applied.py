"""A trained file put to use on the model it was trained on, at any strength between nothing and all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from examples.toy_world.drawing import load_model
from library.core.errors import UserError
from library.methods.embedding import Embedding, ExtendedTable, StartVectors, start_vectors
from library.models.embedding_files import read_embedding
from library.models.stable_diffusion import StableDiffusion
from library.options.text import TextOptions
from library.preview.generate import PromptReader
from library.text.aliases import Alias
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from networks import hypernetwork, lora

METHODS = ("lora", "dreambooth", "fine_tuning", "textual_inversion", "hypernetwork")


@dataclass(frozen=True)
class Applied:
    """What was learned, in force in a model.

    Attributes:
        reader: knows the words of prompts.
        set_strength: 0 gives the model as it was, 1 all that was learned. Networks take it as their multiplier; the
            weights of a whole model, and the vectors of a word, lie so far on the way from first to last.
    """

    reader: PromptReader
    set_strength: Callable[[float], None]


def apply(method: str, file: Path, model: StableDiffusion, word: str, first_word: str) -> Applied:
    """Puts a trained file to use, at strength 1.

    Args:
        method: one of `METHODS`.
        model: in float32; it is changed in place.
        word, first_word: the new word of Textual Inversion, and the one that its vectors began as.

    Raises:
        UserError: the file is missing, damaged or not of this method.
    """
    if not file.is_file():
        raise UserError.of("there is no such file", str(file), "train first: python tools/quickstart.py")
    if method == "textual_inversion":
        return _with_word(file, model, word, first_word)
    reader = PromptReader.of(model.family, TextOptions())
    if method in ("dreambooth", "fine_tuning"):
        return Applied(reader, _between(model, load_model(file, model.prediction_type)))
    network: lora.LoraNetwork | hypernetwork.HypernetworkNetwork
    if method == "lora":
        network, _ = lora.create_network_from_weights(1.0, file, model.vae, model.text_encoder, model.unet)
        network.load_weights(file)
    else:
        network, _ = hypernetwork.create_network_from_weights(1.0, file, model.vae, model.text_encoder, model.unet)
    network.apply_to(model.text_encoder, model.unet)
    network.eval().requires_grad_(False)
    return Applied(reader, network.set_multiplier)


def _between(model: StableDiffusion, trained: StableDiffusion) -> Callable[[float], None]:
    """Sets a model to the trained one, and returns what sets it to any mixture of both."""
    before, after, own = {}, {}, {}
    for part in ("unet", "text_encoder"):
        weights = dict(getattr(trained, part).named_parameters())
        for name, weight in getattr(model, part).named_parameters():
            key = f"{part}.{name}"
            own[key], before[key], after[key] = weight, weight.detach().clone(), weights[name].detach()

    @torch.no_grad()
    def set_strength(strength: float) -> None:
        for key, weight in own.items():
            weight.copy_(torch.lerp(before[key], after[key], strength))

    set_strength(1.0)
    return set_strength


def _with_word(file: Path, model: StableDiffusion, word: str, first_word: str) -> Applied:
    options = TextOptions()
    vectors = read_embedding(file)
    known = model.text_encoder.embeddings.token_embedding.weight
    first_ids = tuple(CaptionTokenizer(model.family, options).text_ids(first_word))
    first = start_vectors(StartVectors(len(vectors), word_ids=first_ids), known, seed=0)
    last = vectors.clone()  # the model takes the vectors themselves, which `set_strength` then changes
    Embedding(vectors, learning_rate=0).attach(model)
    table = model.text_encoder.embeddings.token_embedding
    if not isinstance(table, ExtendedTable):
        raise TypeError(type(table).__name__)
    new = table.new.weight.requires_grad_(False)
    alias = Alias(word, len(vectors))

    def set_strength(strength: float) -> None:
        new.copy_(torch.lerp(first, last, strength))

    def tokenizer(tokens: int) -> CaptionTokenizer:
        return CaptionTokenizer(model.family, TextOptions(max_token_length=tokens), alias)

    return Applied(PromptReader(tokenizer, CaptionEncoder(options)), set_strength)

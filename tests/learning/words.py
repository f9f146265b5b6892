"""New words (Textual Inversion and XTI): captions that have one, and the base model with one that was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from examples.toy_world.drawing import WAY, Way, draw
from examples.toy_world.novelties import Example, Novelty, examples_of, write_examples
from library.methods.embedding import Embedding, LayeredCaptions, LayeredEmbedding
from library.models.embedding_files import LAYERS, is_layered, read_embedding, read_layered_embedding
from library.models.files.weights import open_weights
from library.models.stable_diffusion import StableDiffusion
from library.options.text import TextOptions
from library.preview.generate import PromptReader
from library.text.aliases import Alias
from library.text.encoder import CaptionEncoder
from library.text.tokenizer import CaptionTokenizer
from tests.learning.learning import Pictures, base_copy, prompts_of

WORD = "zumira"  # the word of the novelties, "sks", is one that CLIP knows
_TOKENS = 75  # of captions; no prompt here has more


@dataclass(frozen=True)
class Taught:
    """A model that knows a new word, and what reads prompts with it."""

    model: StableDiffusion
    reader: PromptReader

    def pictures_of(self, prompts: Sequence[str], way: Way = WAY) -> Pictures:
        """As `learning.pictures_of`."""
        return draw(self.model, prompts, range(len(prompts)), way, self.reader)


def with_word(path: Path) -> Taught:
    """The base with the vectors of a file: for all layers, or (XTI) for each."""
    layered = is_layered(open_weights(path))
    vectors = read_layered_embedding(path) if layered else read_embedding(path)
    alias = Alias(WORD, len(vectors) // (len(LAYERS) if layered else 1))
    options = TextOptions(max_token_length=_TOKENS)
    encode = CaptionEncoder(options)
    model = base_copy()
    (LayeredEmbedding if layered else Embedding)(vectors, 0.0).attach(model)
    return Taught(
        model,
        PromptReader(
            lambda _: CaptionTokenizer(model.family, options, alias),
            LayeredCaptions(encode, alias.count) if layered else encode,
        ),
    )


def asking(novelty: Novelty, count: int, seed: int = 1000) -> list[str]:
    """Prompts that ask for something new by the new word, in scenes that vary."""
    return [prompt.replace(novelty.thing, WORD) for prompt in prompts_of(novelty, count, seed)]


def not_asking(novelty: Novelty, count: int, seed: int = 1000) -> list[str]:
    """The same prompts with the plain word of the world in its place."""
    return [prompt.replace(novelty.thing, novelty.class_word) for prompt in prompts_of(novelty, count, seed)]


def write_word(novelty: Novelty, folder: Path, seed: int, count: int = 10) -> Path:
    """Writes pictures of something new whose captions call it by the new word; a plain folder."""
    examples = examples_of(novelty, count, seed)
    write_examples([Example(one.picture, one.caption.replace(novelty.thing, WORD)) for one in examples], folder)
    return folder

"""Training the vectors of a new word beside a frozen model (Textual Inversion, Gal et al. 2022).

Extended Textual Inversion (XTI: Voynov et al., "P+", 2023) has vectors for each of the 16 cross-attention layers. Every
caption is encoded once for each layer, with that layer's vectors in the place of the new word. The U-Net gets the 16
results behind one another as its one tensor of text states, and each layer cuts out its own. So nothing but tensors
carries state: checkpointing, several processes and every kind of attention work as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from library.core.errors import UserError
from library.core.randomness import NO_EPOCH, generator
from library.methods.base import EMBEDDING
from library.models.embedding_files import LAYERS, write_embedding, write_layered_embedding
from library.text.aliases import FIRST_NEW_ID

if TYPE_CHECKING:
    from library.models.stable_diffusion import StableDiffusion

EncodeTokens = Callable[[Any, Tensor, Tensor | None], Tensor]
_AT_ONCE = 16  # captions encoded together: bounds what the second pass of gradient checkpointing takes
_STATES = "encoder_hidden_states"


@dataclass(frozen=True)
class StartVectors:
    """What the vectors of the new word are before training.

    Attributes:
        count: how many there are, in each layer.
        vectors: (layers * count, D) out of a file; None where there is none.
        word_ids: else the tokens of a known word, taken in turn; none for an average word.
        layers: how many layers of the U-Net have vectors of their own; 1 where all share them.
    """

    count: int
    vectors: Tensor | None = None
    word_ids: tuple[int, ...] = ()
    layers: int = 1


class ExtendedTable(nn.Module):
    """The text encoder's table of words with new ones behind it, in a table of their own: the old rows take no part in
    training, so no optimizer, weight decay or rounding can reach them."""

    def __init__(self, table: nn.Embedding, vectors: Tensor) -> None:
        """
        Args:
            table: the frozen one, in any number format.
            vectors: (n, D) of the new words, of the ids from `FIRST_NEW_ID` on; they train in their own format.
        """
        super().__init__()
        self.table = table
        self.new = nn.Embedding.from_pretrained(vectors, freeze=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Vectors (…, D) of ids (…), in the number format of the old table."""
        is_new = input_ids >= FIRST_NEW_ID
        known = self.table(input_ids.masked_fill(is_new, 0))
        # ids of the vocabulary look up row 0, and `where` gives that look-up no gradient
        new = functional.embedding((input_ids - FIRST_NEW_ID).clamp(min=0), self.new.weight)
        return torch.where(is_new.unsqueeze(-1), new.to(known.dtype), known)


class Embedding:
    """The method of train_textual_inversion.py: a table of new vectors learns, everything else is frozen."""

    def __init__(self, vectors: Tensor, learning_rate: float) -> None:
        """
        Args:
            vectors: (n, D) float32, where training starts from, see `start_vectors`.
        """
        self._start = vectors
        self._learning_rate = learning_rate
        self._table: ExtendedTable | None = None

    @property
    def float32_models(self) -> tuple[str, ...]:
        """None: the models only carry gradients."""
        return ()

    def attach(self, models: StableDiffusion) -> None:
        """Puts the new words behind the text encoder's own.

        Raises:
            UserError: the file's vectors have another width than the model's words.
        """
        embeddings = models.text_encoder.embeddings
        table = embeddings.token_embedding
        if table.num_embeddings != FIRST_NEW_ID:  # a new id would be taken for one of the model's, or for none at all
            what = f"its text encoder knows {table.num_embeddings} words instead of {FIRST_NEW_ID}"
            raise UserError.of(what, str(models.source), "give a model with CLIP's own vocabulary")
        if self._start.shape[1] != table.embedding_dim:
            what = f"the vectors of the file have {self._start.shape[1]} numbers, and those of the model's words"
            fix = "give an embedding that was made for this family of models"
            raise UserError.of(f"{what} {table.embedding_dim}", "--weights", fix)
        self._table = ExtendedTable(table, self._start.to(table.weight.device))
        embeddings.token_embedding = self._table  # type: ignore[assignment]  # anything that looks ids up

    def param_groups(self) -> list[dict[str, Any]]:
        """One group: the new vectors."""
        return [{"params": [self._vectors()], "lr": self._learning_rate, "name": EMBEDDING}]

    def trains_text_encoder(self, step: int) -> bool:
        """Gradients reach the new vectors through it, at every step."""
        return True

    def start_epoch(self) -> None:
        """Nothing depends on epochs here."""

    def before_batch(self, seed: int) -> None:
        """Nothing is drawn here."""

    def after_update(self) -> Mapping[str, float | torch.Tensor]:
        """Nothing is corrected, nothing is logged."""
        return {}

    def save(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes the vectors; see `library.models.embedding_files`.

        Raises:
            UserError: a number does not fit the format asked for; they were saved in float32 instead.
        """
        try:
            self._write(path, dtype, metadata)
        except UserError as error:
            self._write(path, torch.float32, metadata)
            what = f"{error.problems[0].what}: the embedding was saved in float32 instead"
            raise UserError.of(what, str(path), "leave --save_precision out: the file is small") from None

    def _write(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        write_embedding(path, self._vectors(), dtype, metadata)

    def _vectors(self) -> nn.Parameter:
        if self._table is None:
            raise RuntimeError("attach was not called")
        return self._table.new.weight


class LayeredEmbedding(Embedding):
    """The method of train_textual_inversion.py --xti: as `Embedding`, with 16 times as many vectors.

    Its captions must be encoded by `LayeredCaptions`, also where the U-Net is only asked (validation, sample pictures).
    """

    def __init__(self, vectors: Tensor, learning_rate: float) -> None:
        """
        Args:
            vectors: (16 n, D) float32, the n of the first layer of `LAYERS` first, see `start_vectors`.
        """
        super().__init__(vectors, learning_rate)
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def attach(self, models: StableDiffusion) -> None:
        """Puts the new words behind the text encoder's own, and makes each layer of the U-Net take its text states.

        Raises:
            UserError: the file's vectors have another width than the model's words.
        """
        super().attach(models)
        for number, path in enumerate(LAYERS.values()):
            for block in models.unet.get_submodule(path).transformer_blocks:  # type: ignore[union-attr]
                hook = block.attn2.register_forward_pre_hook(_take_own_states(number), with_kwargs=True)
                self._hooks.append(hook)

    def detach(self) -> None:
        """Lets the layers of the U-Net take all text states again."""
        while self._hooks:
            self._hooks.pop().remove()

    def _write(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        write_layered_embedding(path, self._vectors(), dtype, metadata)


class LayeredCaptions:
    """Encodes captions for all layers; called as `CaptionEncoder` is.

    Args:
        encode_tokens: encodes captions for one layer.
        num_vectors: n of the new word; the ids of layer l are those of the caption plus l n.
    """

    def __init__(self, encode_tokens: EncodeTokens, num_vectors: int) -> None:
        self._encode_tokens = encode_tokens
        self._num_vectors = num_vectors

    def __call__(self, text_encoder: Any, input_ids: Tensor, token_weights: Tensor | None) -> Tensor:
        """`encoder_hidden_states` (B, 16 R, D): those of the first layer of `LAYERS` first.

        A caption without the new word is the same for all layers, and encoded once.

        Args:
            input_ids: (B, n, L), with the ids of the word as captions have them.
            token_weights: (B, n, L), or None.
        """
        is_new = input_ids >= FIRST_NEW_ID
        counts = torch.where(is_new.flatten(1).any(dim=1), len(LAYERS), 1)  # (B,) how often each is encoded
        caption = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(counts)  # (V,)
        first = counts.cumsum(0) - counts  # (B,) where each caption's begin among all V
        layer = torch.arange(len(caption), device=input_ids.device) - first[caption]
        variants = input_ids[caption] + is_new[caption] * (layer * self._num_vectors)[:, None, None]
        weights = None if token_weights is None else token_weights[caption].split(_AT_ONCE)
        encoded = [
            self._encode_tokens(text_encoder, ids, None if weights is None else weights[number])
            for number, ids in enumerate(variants.split(_AT_ONCE))
        ]
        layers = torch.arange(len(LAYERS), device=input_ids.device)
        own = first[:, None] + layers.clamp(max=counts[:, None] - 1)  # (B, 16) which of the V each layer takes
        return torch.cat(encoded)[own].flatten(1, 2)


def _take_own_states(
    number: int,
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]:
    """A hook for the cross-attention of layer `number` of `LAYERS`."""

    def take(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        states = kwargs[_STATES]  # (B, 16 R, D)
        if states.shape[1] % len(LAYERS):
            raise ValueError(f"{states.shape[1]} text states are not those of {len(LAYERS)} layers")
        return args, {**kwargs, _STATES: states.chunk(len(LAYERS), dim=1)[number]}

    return take


def start_vectors(start: StartVectors, table: Tensor, seed: int) -> Tensor:
    """The vectors that training starts from, (n, D) float32 on the CPU; n = layers * count, layer by layer.

    An average word is drawn from the normal distribution that has the mean and deviation of the table's columns, so
    its vectors are as long as those of real words, and differ from each other. All layers start alike.

    Args:
        table: (49408, D), the model's own words as its file has them, not rounded to the precision of the computation.
        seed: of the run; the draw depends on nothing else.
    """
    if start.vectors is not None:
        return start.vectors.float().clone()
    known = table.detach().float().cpu()
    if start.word_ids:
        ids = [start.word_ids[number % len(start.word_ids)] for number in range(start.count)]
        return known[torch.tensor(ids)].repeat(start.layers, 1)
    draws = generator(seed, NO_EPOCH, "", "embedding vectors")
    normal = torch.from_numpy(draws.standard_normal((start.count, known.shape[1]), dtype=np.float32))
    return (known.mean(dim=0) + known.std(dim=0) * normal).repeat(start.layers, 1)

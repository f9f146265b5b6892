"""Training the vectors of a new word beside a frozen model (Textual Inversion, Gal et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from library.core.errors import UserError
from library.core.randomness import NO_EPOCH, generator
from library.models.embedding_files import write_embedding
from library.text.aliases import FIRST_NEW_ID

if TYPE_CHECKING:
    from library.models.stable_diffusion import StableDiffusion


@dataclass(frozen=True)
class StartVectors:
    """What the vectors of the new word are before training.

    Attributes:
        count: how many there are.
        vectors: (count, D) out of a file; None where there is none.
        word_ids: else the tokens of a known word, taken in turn; none for an average word.
    """

    count: int
    vectors: Tensor | None = None
    word_ids: tuple[int, ...] = ()


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
        return [{"params": [self._vectors()], "lr": self._learning_rate, "name": "embedding"}]

    def trains_text_encoder(self, step: int) -> bool:
        """Gradients reach the new vectors through it, at every step."""
        return True

    def before_batch(self, seed: int) -> None:
        """Nothing is drawn here."""

    def save(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes the vectors; see `library.models.embedding_files`.

        Raises:
            UserError: a number does not fit the format asked for; they were saved in float32 instead.
        """
        try:
            write_embedding(path, self._vectors(), dtype, metadata)
        except UserError as error:
            write_embedding(path, self._vectors(), torch.float32, metadata)
            what = f"{error.problems[0].what}: the embedding was saved in float32 instead"
            raise UserError.of(what, str(path), "leave --save_precision out: the file is small") from None

    def _vectors(self) -> nn.Parameter:
        if self._table is None:
            raise RuntimeError("attach was not called")
        return self._table.new.weight


def start_vectors(start: StartVectors, table: Tensor, seed: int) -> Tensor:
    """The vectors that training starts from, (n, D) float32 on the CPU.

    An average word is drawn from the normal distribution that has the mean and deviation of the table's columns, so
    its vectors are as long as those of real words, and differ from each other.

    Args:
        table: (49408, D), the model's own words as its file has them, not rounded to the precision of the computation.
        seed: of the run; the draw depends on nothing else.
    """
    if start.vectors is not None:
        return start.vectors.float().clone()
    known = table.detach().float().cpu()
    if start.word_ids:
        ids = [start.word_ids[number % len(start.word_ids)] for number in range(start.count)]
        return known[torch.tensor(ids)]
    draws = generator(seed, NO_EPOCH, "", "embedding vectors")
    normal = torch.from_numpy(draws.standard_normal((start.count, known.shape[1]), dtype=np.float32))
    return known.mean(dim=0) + known.std(dim=0) * normal

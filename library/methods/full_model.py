"""Training the model's own weights: fine-tuning and DreamBooth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

import torch
from torch import nn

from library.core.errors import UserError
from library.methods.base import TEXT_ENCODER, UNET
from library.methods.rates import PartRates
from library.models.extras import ModelExtras
from library.models.forms import SaveTarget
from library.models.save import Precisions, save_model
from library.models.stable_diffusion import StableDiffusion
from library.text.tokenizer import tokenizer_files


@dataclass(frozen=True)
class SavedForm:
    """How the trained model is written.

    Attributes:
        form: one of `SAVE_FORMATS`.
        vae_dtype: number format of the saved VAE.
        extras: what the base model's files hold beside the networks, in memory.
    """

    form: str
    vae_dtype: torch.dtype
    extras: ModelExtras


class FullModel:
    """The method of train_db.py and fine_tune.py: the U-Net learns, and the text encoder with it where asked.

    Once the text encoder has stopped, captions are encoded outside the computation of gradients, so none of its weights
    has one. Optimizers leave weights without a gradient alone, with decay and momentum: they keep their bits.

    Args:
        rates: of both parts.
        unused_text_layers: layers of the text encoder that no result depends on (clip skip); they stay as they are.
        stop_text_encoder_at: it learns in so many updates from the start of the run; 0 and -1 for none, None for all.
    """

    def __init__(
        self,
        rates: PartRates,
        trains_text_encoder: bool,
        unused_text_layers: Sequence[int],
        saved: SavedForm,
        stop_text_encoder_at: int | None = None,
    ) -> None:
        self._rates = rates
        self._stop = _updates_of_text_encoder(trains_text_encoder, stop_text_encoder_at)
        self._unused_text_layers = tuple(unused_text_layers)
        self._saved = saved
        self._models: StableDiffusion | None = None

    @property
    def float32_models(self) -> tuple[str, ...]:
        """Both: a text encoder that does not learn is saved with the model, as exactly as it was loaded."""
        return ("text_encoder", "unet")

    def attach(self, models: StableDiffusion) -> None:
        """Lets the weights learn."""
        self._models = models
        for part in self._parts().values():
            part.requires_grad_(True)
            part.train()
        for layer in self._unused_text_layers:
            models.text_encoder.encoder.layers[layer].requires_grad_(False)

    def param_groups(self) -> list[dict[str, Any]]:
        """One group a part; none for a text encoder that never learns."""
        rates = self._rates._asdict()
        return [
            {"params": [p for p in part.parameters() if p.requires_grad], "lr": rates[name], "name": name}
            for name, part in self._parts().items()
        ]

    def trains_text_encoder(self, step: int) -> bool:
        """The whole run, never, or up to the update where it stops."""
        return step < self._stop

    def start_epoch(self) -> None:
        """Nothing depends on epochs here."""

    def before_batch(self, seed: int) -> None:
        """Nothing is drawn here."""

    def after_update(self) -> Mapping[str, float | torch.Tensor]:
        """Nothing is corrected, nothing is logged."""
        return {}

    def save(self, path: Path, dtype: torch.dtype, metadata: Mapping[str, str]) -> None:
        """Writes the whole model, the VAE that it was trained with included.

        Raises:
            UserError: a number does not fit the format asked for; the model was saved in float32 instead, for hours of
                training may be in it.
        """
        models = self._attached()
        target, files = SaveTarget(path, self._saved.form), tokenizer_files(models.family)
        precisions = Precisions(weights=dtype, vae=self._saved.vae_dtype)
        try:
            save_model(models, target, precisions, self._saved.extras, metadata, files)
        except UserError as error:
            whole = Precisions(weights=torch.float32, vae=torch.float32)
            save_model(models, target, whole, self._saved.extras, metadata, files)
            fix = "tools/convert_model.py brings it into another precision"
            what = f"{error.problems[0].what}: the trained model was saved in float32 instead"
            raise UserError.of(what, str(path), fix) from None

    def _parts(self) -> dict[str, nn.Module]:
        """What learns, by name."""
        models = self._attached()
        names = (TEXT_ENCODER, UNET) if self._stop > 0 else (UNET,)
        return {name: getattr(models, name) for name in names}

    def _attached(self) -> StableDiffusion:
        if self._models is None:
            raise RuntimeError("attach was not called")
        return self._models


def _updates_of_text_encoder(trains_text_encoder: bool, stop_at: int | None) -> float:
    """In how many updates, from the start of the run, the text encoder learns."""
    if not trains_text_encoder:
        return 0
    return inf if stop_at is None else max(0, stop_at)

"""What is computed once and kept: latents, and the text encoder's outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option
from library.options.checks import at_least

TEXT_CACHE_FLAG = "--cache_text_encoder_outputs"
VAE_PRECISIONS = ("float", "fp16", "bf16")


@dataclass(frozen=True)
class CachingOptions(OptionGroup):
    """What is kept; a training is the same with and without (but for `vae_batch_size`, in the last bits)."""

    title: ClassVar[str] = "Caches"

    cache_latents: bool = option(False, "encode every picture once at the start and keep the latents in memory")
    cache_latents_to_disk: bool = option(
        False,
        "keep the latents in .npz files beside the pictures instead, where the next run finds them; "
        "only pictures that changed are encoded again",
    )
    cache_latent_distribution: bool = option(
        False,
        "draw from the VAE's distribution anew at each use instead of once a picture; "
        "caches then keep its mean and deviation",
    )
    trust_foreign_latents: bool = option(
        False,
        "with --cache_latents_to_disk: use latents that other programs left beside the pictures as they are, "
        "if they have the right shape; which VAE made them is unknown",
    )
    vae_batch_size: int = option(
        1,
        "pictures encoded together while a cache is filled; above 1 is faster on a card, "
        "and the latents differ in their last bits",
        check=at_least(1),
        metavar="N",
    )
    vae_precision: str = option(
        "float",
        "number format the VAE encodes in; pictures that overflow in a smaller one are encoded again in float",
        choices=VAE_PRECISIONS,
    )
    cache_text_encoder_outputs: bool = option(
        False, "encode every caption once at the start; for captions that never vary and a text encoder that is frozen"
    )
    cache_text_encoder_outputs_to_disk: bool = option(
        False, "keep them in .npz files beside the pictures instead, where the next run finds them"
    )

    @property
    def keeps_texts(self) -> bool:
        """Whether captions are encoded once, in memory or on disk."""
        return self.cache_text_encoder_outputs or self.cache_text_encoder_outputs_to_disk

"""Gradient checkpointing (Chen et al. 2016): activations are computed again in the backward pass instead of kept."""

from __future__ import annotations

from library.models.stable_diffusion import StableDiffusion


def enable_gradient_checkpointing(models: StableDiffusion, with_text_encoder: bool) -> None:
    """Switches it on for the U-Net and, where gradients reach it, the text encoder.

    Both networks are put into training mode, for the text encoder of transformers 5 checkpoints only there. Neither has
    dropout, so nothing else changes.
    """
    models.unet.enable_gradient_checkpointing()
    models.unet.train()
    if with_text_encoder:
        models.text_encoder.activation_checkpointing_enable()
        models.text_encoder.train()

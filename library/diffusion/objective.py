"""The training objective: predict what was added to the latents, given the caption."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from library.diffusion.loss import errors_of, weighted_mean
from library.diffusion.noise import Noise, with_adaptive_offset
from library.diffusion.schedule import add_noise, training_schedule, velocity
from library.diffusion.weighting import loss_thresholds, timestep_weights
from library.options.objective import ObjectiveOptions

EncodeTokens = Callable[[Any, torch.Tensor, torch.Tensor | None], torch.Tensor]


class Captions(NamedTuple):
    """The captions of a batch.

    Attributes:
        input_ids: tokens in n chunks (B, n, 77).
        token_weights: what each token's text state is multiplied by, same shape; None for captions without weights.
        states: the captions encoded already (B, L, D), or None.
    """

    input_ids: torch.Tensor
    token_weights: torch.Tensor | None = None
    states: torch.Tensor | None = None


class Objective(nn.Module):
    """Latents, noise, time and caption to a loss; everything that trains is inside, so engines see one model.

    Args:
        unet: predicts from (noisy latents, timesteps, encoder_hidden_states); returns an object with `.sample`.
        text_encoder: the captions' encoder; None where all captions come encoded.
        encode_tokens: (text_encoder, input_ids, token_weights) to encoder_hidden_states (B, L, D).
        trained: further modules that train (a LoRA network), held so that their parameters belong to the objective.
        prediction_type: "epsilon" or "v_prediction".
        scaling_factor: what latents are multiplied by before they are diffused; applied here and nowhere else.
        options: schedule, loss and weights of the diffusion times.
    """

    alphas_cumprod: torch.Tensor
    timestep_weights: torch.Tensor
    loss_thresholds: torch.Tensor | None

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module | None,
        encode_tokens: EncodeTokens,
        trained: nn.Module | None,
        prediction_type: str,
        scaling_factor: float,
        options: ObjectiveOptions = ObjectiveOptions(),  # noqa: B008  # frozen
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.trained = trained
        self.predicts_velocity = prediction_type == "v_prediction"
        self._encode_tokens = encode_tokens
        self._scaling_factor = scaling_factor
        self._options = options
        alphas = training_schedule(options.zero_terminal_snr)
        weights = timestep_weights(options, alphas, self.predicts_velocity)
        self.register_buffer("alphas_cumprod", alphas.float(), persistent=False)
        self.register_buffer("timestep_weights", weights, persistent=False)
        self.register_buffer("loss_thresholds", loss_thresholds(options, alphas), persistent=False)

    def forward(
        self,
        latents: torch.Tensor,
        noise: Noise,
        timesteps: torch.Tensor,
        captions: Captions,
        loss_weights: torch.Tensor,
        masks: torch.Tensor | None,
        train_text_encoder: bool,
    ) -> torch.Tensor:
        """The loss of one batch.

        Args:
            latents: unscaled latents (B, 4, h, w).
            noise: what is added to them.
            timesteps: diffusion times (B,), whole numbers below 1000.
            captions: what is in the pictures.
            loss_weights: (B,).
            masks: weights of the latents' cells (B, 1, h, w); None where all count fully.
            train_text_encoder: whether gradients flow into the text encoder at this step.

        Returns:
            Scalar loss, float32.
        """
        latents = latents * self._scaling_factor
        alphas = self.alphas_cumprod[timesteps]
        added = with_adaptive_offset(noise, latents, self._options.adaptive_noise_scale)
        seen = added if noise.input_noise is None else added + noise.input_noise
        noisy_latents = add_noise(latents, seen, alphas)
        target = velocity(latents, added, alphas) if self.predicts_velocity else added

        encoder_hidden_states = self._text_states(captions, train_text_encoder)
        weight_dtype = next(self.unet.parameters()).dtype
        prediction = self.unet(noisy_latents.to(weight_dtype), timesteps, encoder_hidden_states.to(weight_dtype)).sample

        thresholds = None if self.loss_thresholds is None else self.loss_thresholds[timesteps]
        errors = errors_of(prediction, target, self._options.loss_type, thresholds)
        return weighted_mean(errors, loss_weights * self.timestep_weights[timesteps], masks)

    def _text_states(self, captions: Captions, train_text_encoder: bool) -> torch.Tensor:
        """What the captions become for the U-Net, (B, L, D)."""
        if captions.states is not None:
            return captions.states
        with torch.set_grad_enabled(train_text_encoder and torch.is_grad_enabled()):
            return self._encode_tokens(self.text_encoder, captions.input_ids, captions.token_weights)

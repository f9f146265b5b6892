"""The objective computes the loss of the papers, written out a second time in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from library.diffusion.loss import weighted_mse
from library.diffusion.objective import Captions, Objective
from library.diffusion.schedule import scaled_linear_alphas_cumprod

SCALE = 0.18215


class LinearUnet(nn.Module):
    """A U-Net one can compute by hand: a mix of the noisy latents, the time and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.7))

    def forward(self, latents: torch.Tensor, timesteps: torch.Tensor, states: torch.Tensor) -> SimpleNamespace:
        text = states.mean(dim=(1, 2)).view(-1, 1, 1, 1)
        return SimpleNamespace(sample=self.weight * latents + timesteps.view(-1, 1, 1, 1) / 1000 + text)


def batch() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "latents": torch.randn(3, 4, 8, 8, generator=generator) * 5,
        "noise": torch.randn(3, 4, 8, 8, generator=generator),
        "timesteps": torch.tensor([0, 500, 999]),
        "captions": Captions(torch.randint(0, 50, (3, 77), generator=generator)),
        "loss_weights": torch.tensor([1.0, 0.5, 2.0]),
        "masks": None,
    }


def make_objective(prediction_type: str) -> tuple[Objective, nn.Embedding]:
    torch.manual_seed(0)
    text_encoder = nn.Embedding(50, 6)
    unet = LinearUnet()
    return Objective(
        unet, text_encoder, lambda model, ids, _weights: model(ids), None, prediction_type, SCALE
    ), text_encoder


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_equals_the_formula(prediction_type: str, masked: bool) -> None:
    objective, text_encoder = make_objective(prediction_type)
    values = batch() | {"masks": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) if masked else None}
    loss = objective(**values, train_text_encoder=False).detach()

    v = {
        key: value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        for key, value in values.items()
    }
    alphas = scaled_linear_alphas_cumprod().double()[v["timesteps"]].view(-1, 1, 1, 1)
    clean = v["latents"] * SCALE
    noisy = alphas.sqrt() * clean + (1 - alphas).sqrt() * v["noise"]
    velocity = alphas.sqrt() * v["noise"] - (1 - alphas).sqrt() * clean
    target = v["noise"] if prediction_type == "epsilon" else velocity
    text = text_encoder(v["captions"].input_ids).double().mean(dim=(1, 2)).view(-1, 1, 1, 1)
    predicted = 0.7 * noisy + v["timesteps"].view(-1, 1, 1, 1) / 1000 + text
    errors = (predicted - target) ** 2 * (v["masks"] if masked else 1)
    expected = (errors.mean(dim=(1, 2, 3)) * v["loss_weights"]).mean()
    assert float(loss) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("train_text_encoder", [True, False])
def test_gradients_reach_the_text_encoder_only_when_asked(train_text_encoder: bool) -> None:
    objective, text_encoder = make_objective("epsilon")
    objective(**batch(), train_text_encoder=train_text_encoder).backward()
    assert objective.unet.weight.grad is not None
    assert (text_encoder.weight.grad is not None) == train_text_encoder


def test_encoded_captions_take_the_place_of_the_text_encoder() -> None:
    objective, text_encoder = make_objective("epsilon")
    values = batch()
    expected = objective(**values, train_text_encoder=False)
    states = text_encoder(values["captions"].input_ids).detach()
    values["captions"] = Captions(torch.zeros(3, 77, dtype=torch.int64), states=states)
    assert torch.equal(objective(**values, train_text_encoder=False), expected)


def test_a_mask_of_ones_changes_no_bit() -> None:
    prediction, target = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    weights = torch.tensor([0.3, 1.0])
    masked = weighted_mse(prediction, target, weights, torch.ones(2, 1, 8, 8))
    assert torch.equal(masked, weighted_mse(prediction, target, weights))


def test_weight_zero_silences_a_sample() -> None:
    prediction, target = torch.ones(2, 4, 2, 2), torch.zeros(2, 4, 2, 2)
    assert weighted_mse(prediction, target, torch.tensor([0.0, 1.0])) == 0.5
    assert weighted_mse(prediction.half(), target.half(), torch.ones(2)).dtype == torch.float32

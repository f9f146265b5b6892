"""The objective computes the loss of the papers, written out a second time in float64."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import send_to_device
from torch import nn

from library.diffusion.noise import Noise
from library.diffusion.objective import Captions, Objective
from library.options.objective import ObjectiveOptions
from tests.diffusion.closed_forms import plain_alphas, snr_of, stretched_alphas

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
        "noise": Noise(torch.randn(3, 4, 8, 8, generator=generator)),
        "timesteps": torch.tensor([0, 500, 999]),
        "captions": Captions(torch.randint(0, 50, (3, 77), generator=generator)),
        "loss_weights": torch.tensor([1.0, 0.5, 2.0]),
        "masks": None,
    }


def make_objective(prediction_type: str, **options: Any) -> tuple[Objective, nn.Embedding]:
    torch.manual_seed(0)
    text_encoder = nn.Embedding(50, 6)
    asked = ObjectiveOptions(**options)
    objective = Objective(
        LinearUnet(), text_encoder, lambda model, ids, _weights: model(ids), None, prediction_type, SCALE, asked
    )
    return objective, text_encoder


def loss_of(objective: Objective, **values: Any) -> torch.Tensor:
    with torch.no_grad():
        return objective(**values, train_text_encoder=False)


def all_noise() -> Noise:
    """With everything that a batch's noise can have."""
    generator = torch.Generator().manual_seed(2)
    plain = batch()["noise"].noise
    return Noise(
        plain,
        0.3 * torch.randn(plain.shape, generator=generator),
        torch.randn(3, 4, 1, 1, generator=generator),
        torch.rand(3, 1, 1, 1, generator=generator),
    )


def written_out(values: dict[str, Any], text_encoder: nn.Embedding, prediction_type: str, **options: Any) -> float:
    """The loss in float64, with the numbers of `LinearUnet`."""
    asked = ObjectiveOptions(**options)
    noise = Noise(*(None if part is None else part.double() for part in values["noise"]))
    table = torch.from_numpy(stretched_alphas() if asked.zero_terminal_snr else plain_alphas())
    alphas = table[values["timesteps"]].view(-1, 1, 1, 1)
    clean = values["latents"].double() * SCALE
    asked_for = noise.noise
    if noise.offset_noise is not None and noise.offset_strength is not None and asked.adaptive_noise_scale is not None:
        means = clean.mean(dim=(2, 3), keepdim=True).abs()
        asked_for = (
            asked_for + (noise.offset_strength + asked.adaptive_noise_scale * means).clamp(min=0) * noise.offset_noise
        )
    seen = asked_for if noise.input_noise is None else asked_for + noise.input_noise
    noisy = alphas.sqrt() * clean + (1 - alphas).sqrt() * seen
    velocity = alphas.sqrt() * asked_for - (1 - alphas).sqrt() * clean
    target = asked_for if prediction_type == "epsilon" else velocity
    text = text_encoder(values["captions"].input_ids).double().mean(dim=(1, 2)).view(-1, 1, 1, 1)
    difference = 0.7 * noisy + values["timesteps"].view(-1, 1, 1, 1) / 1000 + text - target
    errors = difference**2
    if asked.loss_type == "l1":
        errors = difference.abs()
    elif asked.loss_type != "l2":
        c = asked.huber_c
        errors = 2 * ((difference**2 + c**2).sqrt() - c) * (c if asked.loss_type == "huber" else 1)
    if values["masks"] is not None:
        errors = errors * values["masks"].double()
    snr = torch.from_numpy(snr_of(table.numpy()))[values["timesteps"]]
    weights = values["loss_weights"].double()
    if asked.min_snr_gamma is not None:
        weights = weights * snr.clamp(max=asked.min_snr_gamma) / (snr if prediction_type == "epsilon" else snr + 1)
    if asked.scale_v_pred_loss_like_noise_pred:
        weights = weights * snr / (snr + 1)
    return float((errors.mean(dim=(1, 2, 3)) * weights).mean().detach())


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("masked", [False, True])
def test_loss_equals_the_formula(prediction_type: str, masked: bool) -> None:
    objective, text_encoder = make_objective(prediction_type)
    values = batch() | {"masks": torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)) if masked else None}
    loss = objective(**values, train_text_encoder=False).detach()
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(written_out(values, text_encoder, prediction_type), rel=1e-5)


@pytest.mark.parametrize(
    ("prediction_type", "options"),
    [
        ("epsilon", {"noise_offset": 0.1, "adaptive_noise_scale": 2.0}),
        ("v_prediction", {"noise_offset": 0.1, "adaptive_noise_scale": -0.4}),
        ("epsilon", {"min_snr_gamma": 5.0}),
        ("v_prediction", {"min_snr_gamma": 5.0}),
        ("v_prediction", {"scale_v_pred_loss_like_noise_pred": True}),
        ("v_prediction", {"zero_terminal_snr": True}),
        ("v_prediction", {"zero_terminal_snr": True, "min_snr_gamma": 5.0}),
        ("epsilon", {"loss_type": "l1"}),
        ("epsilon", {"loss_type": "huber", "huber_schedule": "constant", "huber_c": 0.3}),
        ("v_prediction", {"loss_type": "smooth_l1", "huber_schedule": "constant"}),
    ],
    ids=str,
)
def test_options_change_the_loss_as_the_formula_does(prediction_type: str, options: dict[str, Any]) -> None:
    values = batch() | {"noise": all_noise() if "adaptive_noise_scale" in options else batch()["noise"]}
    objective, text_encoder = make_objective(prediction_type, **options)
    loss = float(loss_of(objective, **values))
    assert loss == pytest.approx(written_out(values, text_encoder, prediction_type, **options), rel=1e-5)
    plain, _ = make_objective(prediction_type)
    assert abs(loss / float(loss_of(plain, **(values | {"noise": batch()["noise"]}))) - 1) > 1e-4


def test_thresholds_and_weights_follow_the_diffusion_time() -> None:
    """A batch of one time has the same loss as the table's entry of that time as a constant."""
    for time in (0, 400, 999):
        values = batch() | {"timesteps": torch.full((3,), time)}
        exponential, _ = make_objective("epsilon", loss_type="huber", huber_schedule="exponential", huber_c=0.2)
        constant, _ = make_objective(
            "epsilon", loss_type="huber", huber_schedule="constant", huber_c=0.2 ** (time / 1000)
        )
        expected = float(loss_of(constant, **values))
        assert float(loss_of(exponential, **values)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_input_noise_is_seen_and_not_asked_for(prediction_type: str) -> None:
    objective, text_encoder = make_objective(prediction_type)
    values = batch() | {"noise": Noise(batch()["noise"].noise, all_noise().input_noise)}
    loss = float(loss_of(objective, **values))
    assert loss == pytest.approx(written_out(values, text_encoder, prediction_type), rel=1e-5)
    assert abs(loss / float(loss_of(objective, **batch())) - 1) > 1e-3


@pytest.mark.parametrize("loss_type", ["l2", "l1", "huber", "smooth_l1"])
def test_masked_cells_have_no_gradient_at_all(loss_type: str) -> None:
    """Neither what the model sees there nor what it predicts there matters in the last bit."""
    objective, _ = make_objective("epsilon", loss_type=loss_type)
    masks = torch.ones(3, 1, 8, 8)
    masks[..., :5] = 0
    values = batch() | {"masks": masks}
    noise = values["noise"].noise.clone().requires_grad_()
    objective(**(values | {"noise": Noise(noise)}), train_text_encoder=False).backward()
    assert noise.grad is not None and (noise.grad[..., :5] == 0).all() and (noise.grad[..., 5:] != 0).any()


def test_noise_moves_between_devices_as_what_it_is() -> None:
    for noise in (batch()["noise"], all_noise()):
        moved = send_to_device(noise, torch.device("cpu"))
        assert isinstance(moved, Noise)
        assert all(torch.equal(a, b) if a is not None else b is None for a, b in zip(noise, moved, strict=True))


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

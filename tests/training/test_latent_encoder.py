"""The frozen VAE: its precision, what overflows in it, and what a batch changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from library.core.errors import UserError
from library.models.tiny import make_tiny_model
from library.training.latents import LatentEncoder

CPU = torch.device("cpu")
PRECISIONS = ("float", "fp16", "bf16")


def make_vae(loudness: float = 1.0) -> Any:
    """A tiny VAE; with more loudness its first layer gives larger numbers, which the next one normalises."""
    vae = make_tiny_model("sd1", seed=0).vae
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(loudness)
    return vae


def pictures(count: int = 5, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 32, 48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def noise(count: int = 5) -> Tensor:
    return torch.randn(count, 4, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("precision", PRECISIONS)
def test_drawing_from_the_distribution_later_gives_the_same_bits(precision: str) -> None:
    encoder = LatentEncoder(make_vae(), CPU, precision)
    at_once = encoder(pictures(), noise())
    rows = [encoder.distribution(picture).distribution for picture in pictures().split(1)]
    mean, deviation = torch.cat(rows).chunk(2, dim=1)
    assert torch.equal(mean + deviation * noise(), at_once) and at_once.dtype == mean.dtype == torch.float32
    assert (deviation > 0).all()


def test_float_is_plain_float32() -> None:
    vae = make_vae()
    with torch.no_grad():
        expected = vae.encode(pictures(1)).latent_dist
    found = LatentEncoder(vae, CPU).distribution(pictures(1)).distribution
    assert torch.equal(found, torch.cat([expected.mean, expected.std], dim=1))


def test_smaller_precisions_are_near_and_not_equal() -> None:
    exact = LatentEncoder(make_vae(), CPU).distribution(pictures(1)).distribution
    for precision in ("fp16", "bf16"):
        found = LatentEncoder(make_vae(), CPU, precision).distribution(pictures(1)).distribution
        assert not torch.equal(found, exact) and (found - exact).abs().max() < 0.1 * exact.abs().max()


def loud_pictures() -> Tensor:
    """The second and the last are loud, the others are faint."""
    return pictures() * torch.tensor([0.01, 1.0, 0.01, 0.01, 1.0]).reshape(5, 1, 1, 1)


def test_what_overflows_is_encoded_again_alone() -> None:
    vae = make_vae(loudness=5e4)
    in_half, exact = LatentEncoder(vae, CPU, "fp16"), LatentEncoder(vae, CPU)
    encoding = in_half.distribution(loud_pictures())
    assert encoding.redone == (1, 4) and torch.isfinite(encoding.distribution).all()
    for row, picture in enumerate(loud_pictures().split(1)):
        if row in (1, 4):
            assert torch.equal(encoding.distribution[row], exact.distribution(picture).distribution[0])
        else:
            assert not torch.equal(encoding.distribution[row], exact.distribution(picture).distribution[0])
    with_five = exact.distribution(loud_pictures())
    assert with_five.redone == () and torch.isfinite(with_five.distribution).all()


def test_the_same_happens_on_the_fly_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    encoder = LatentEncoder(make_vae(loudness=5e4), CPU, "fp16")
    names = ("a.png", "b.png", "c.png", "d.png", "e.png")
    rows = [encoder.distribution(picture).distribution for picture in loud_pictures().split(1)]
    mean, deviation = torch.cat(rows).chunk(2, dim=1)
    with caplog.at_level("WARNING"):
        for _ in range(2):
            assert torch.equal(encoder(loud_pictures(), noise(), names), mean + deviation * noise())
    told = [record.getMessage() for record in caplog.records if "overflows" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("b.png overflows in --vae_precision")


def test_what_is_not_finite_in_float_either_is_named() -> None:
    vae = make_vae()
    with torch.no_grad():
        vae.encoder.conv_in.weight.fill_(torch.nan)
    with pytest.raises(UserError, match=r"b\.png: the VAE turns this picture into numbers that are not finite"):
        LatentEncoder(vae, CPU, "fp16")(pictures(1), noise(1), ["b.png"])
    encoding = LatentEncoder(vae, CPU, "fp16").distribution(pictures(1))
    assert encoding.redone == (0,) and not torch.isfinite(encoding.distribution).all()


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_batch_changes_the_last_bits_by_its_size_alone(count: int) -> None:
    """What `--vae_batch_size` is in the fingerprint for; and why incomplete batches may be filled up with anything."""
    encoder = LatentEncoder(make_vae(), CPU)
    together = encoder.distribution(pictures(count)).distribution
    alone = torch.cat([encoder.distribution(picture).distribution for picture in pictures(count).split(1)])
    assert (together - alone).abs().max() < 1e-4
    reversed_order = encoder.distribution(pictures(count).flip(0)).distribution.flip(0)
    copies = encoder.distribution(pictures(count)[:1].expand(count, -1, -1, -1)).distribution
    assert torch.equal(reversed_order, together) and torch.equal(copies[0], together[0])

"""The VAE of the toy world: pictures to latents of an eighth of their side, and back.

It sees the small world and, as a third of its pictures, random heaps of coloured forms: what people train the model on
later is not in the world, and must still be encoded well.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from examples.toy_world.cpu_layers import use_fast_norms
from examples.toy_world.stages import Stage, run_stage
from examples.toy_world.world import draw_scene, random_scene
from library.core.randomness import NO_EPOCH, derived_seed, generator
from library.models.stable_diffusion import VAE_SCALING_FACTOR
from library.models.topology import vae_config

STAGE = Stage("vae", steps=4400, rate=2e-3)
WIDTHS = (32, 32, 64, 64)
BATCH = 16
SHAPES = ((64, 64), (64, 64), (96, 48), (48, 96))  # width, height: the same number of pixels, more or less
_HEAPS = 5  # of `BATCH` pictures
_KL_WEIGHT = 1e-3  # per picture value; the evidence bound itself would take about 8e-3 at 30 dB
_STATISTICS_BATCHES = 40


def trained_vae(seed: int, folder: Path) -> AutoencoderKL:
    """The trained VAE, in float32; its latents have mean 0, variance 1 and no correlations once they are scaled."""
    torch.manual_seed(derived_seed(seed, NO_EPOCH, "vae", "weights"))
    vae = AutoencoderKL(**vae_config("sd1", WIDTHS)).to(memory_format=torch.channels_last)
    use_fast_norms(vae)

    def loss_of(step: int) -> Tensor:
        pictures = pictures_of(seed, step).contiguous(memory_format=torch.channels_last)
        torch.manual_seed(derived_seed(seed, step, "vae", "draw"))
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latent_dist
            there = vae.decode(latents.sample()).sample.float()
        divergence = latents.kl().float().mean() / pictures[0].numel()
        return F.l1_loss(there, pictures) + 2 * F.mse_loss(there, pictures) + _KL_WEIGHT * divergence

    run_stage(STAGE, vae, loss_of, folder)
    _whiten(vae, seed)
    return vae


def pictures_of(seed: int, step: int) -> Tensor:
    """The pictures of a step: (BATCH, 3, height, width), -1 to 1."""
    draw = generator(seed, step, "vae", "pictures")
    width, height = SHAPES[step % len(SHAPES)]
    heaps = [_heap(width, height, draw) for _ in range(_HEAPS)]
    scenes = [draw_scene(random_scene(draw), width, height, draw) for _ in range(BATCH - _HEAPS)]
    return as_tensor(np.stack(heaps + scenes))


def _scenes(number: int, draw: np.random.Generator) -> Tensor:
    width, height = SHAPES[number % len(SHAPES)]
    return as_tensor(np.stack([draw_scene(random_scene(draw), width, height, draw) for _ in range(BATCH)]))


def as_tensor(pictures: NDArray[np.uint8]) -> Tensor:
    """(count, height, width, 3) of 0 to 255 as (count, 3, height, width) of -1 to 1."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _heap(width: int, height: int, draw: np.random.Generator) -> NDArray[np.uint8]:
    """Ellipses, boxes, polygons and lines in any colour, on a shaded ground."""
    colours = draw.uniform(0, 255, (2, 3))
    along = np.linspace(0, 1, height)[:, None, None]
    ground = colours[0] + (colours[1] - colours[0]) * along * draw.uniform(0, 1)
    picture = Image.fromarray(np.broadcast_to(ground, (height, width, 3)).astype(np.uint8))
    picture = picture.resize((width * 2, height * 2))
    pen = ImageDraw.Draw(picture)
    for _ in range(int(draw.integers(1, 7))):
        colour = tuple(int(value) for value in draw.integers(0, 256, 3))
        middle = draw.uniform(0, 2, 2) * (width, height)
        reach = draw.uniform(4, 44, 2)
        kind = int(draw.integers(4))
        box = (*(middle - reach), *(middle + reach))
        if kind == 0:
            pen.ellipse(box, fill=colour)
        elif kind == 1:
            pen.rectangle(box, fill=colour)
        elif kind == 2:
            corners = middle + draw.uniform(-1.4, 1.4, (int(draw.integers(3, 7)), 2)) * reach
            pen.polygon([tuple(corner) for corner in corners], fill=colour)
        else:
            pen.line(box, fill=colour, width=int(draw.integers(3, 10)))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))


@torch.no_grad()
def _whiten(vae: AutoencoderKL, seed: int) -> None:
    """Folds into the two 1x1 convolutions around the latents what gives them, scaled, mean 0 and covariance 1."""
    draw = generator(seed, NO_EPOCH, "vae", "statistics")
    means = [
        vae.encode(_scenes(number, draw)).latent_dist.mean.permute(0, 2, 3, 1).flatten(0, 2)
        for number in range(_STATISTICS_BATCHES)
    ]
    found = torch.cat(means).double()
    middle = found.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(found.T))
    # the symmetric root: latents change as little as they can, and each stays where it was
    there = axes @ torch.diag((variances * VAE_SCALING_FACTOR**2) ** -0.5) @ axes.T
    back = torch.linalg.inv(there)
    into, out = vae.quant_conv, vae.post_quant_conv
    assert into is not None and into.bias is not None and out is not None and out.bias is not None
    weight, bias = into.weight.double()[..., 0, 0], into.bias.double()
    channels = len(middle)
    # of the noise, only its size in each direction can be kept: a diagonal
    growth = 2 * torch.log(torch.linalg.vector_norm(there, dim=1))
    into.weight[:channels, :, 0, 0] = (there @ weight[:channels]).float()
    into.bias[:channels] = (there @ (bias[:channels] - middle)).float()
    into.bias[channels:] = (bias[channels:] + growth).float()
    weight = out.weight.double()[..., 0, 0]
    out.bias.copy_((out.bias.double() + weight @ middle).float())
    out.weight[..., 0, 0] = (weight @ back).float()


def decibels(pictures: Tensor, reconstructions: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each picture, in dB; values from -1 to 1."""
    errors = ((pictures - reconstructions.clamp(-1, 1)) / 2).pow(2).flatten(1).mean(1)
    return -10 * torch.log10(errors)


def measured(vae: AutoencoderKL, seed: int, batches: int = 8) -> float:
    """Mean PSNR, in dB, over pictures of the world that it never saw."""
    draw = generator(seed, NO_EPOCH, "vae", "measure")
    found = []
    for number in range(batches):
        pictures = _scenes(number, draw)
        with torch.no_grad():
            found.append(decibels(pictures, vae.decode(vae.encode(pictures).latent_dist.mode()).sample))
    return float(torch.cat(found).mean())

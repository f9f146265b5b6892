"""The VAE of the toy world: pictures to latents of an eighth of their side, and back.

It sees the small world and, as a third of its pictures, random heaps of coloured forms: what people train the model on
later is not in the world, and must still be encoded well.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from examples.toy_world.cpu_layers import use_fast_norms
from examples.toy_world.recipe import Build, seeded
from examples.toy_world.stages import Stage, run_stage
from examples.toy_world.world import SIZES, draw_scene, random_scene
from library.core.randomness import NO_EPOCH, derived_seed, generator
from library.models.stable_diffusion import VAE_SCALING_FACTOR
from library.models.topology import vae_config

SMALLER = {"small": 0.36, "large": 0.56}  # than the world's, so that it keeps details with something to spare
_CODE = ("world", "cpu_layers", "train_vae")
STAGE = Stage("vae", steps=4400, rate=2e-3, code=_CODE)
FINE_STAGE = Stage("vae_fine", steps=4600, rate=6e-4, code=_CODE)  # smaller batches, nearly all of them of the world
DECODER_STAGE = Stage("decoder", steps=2600, rate=6e-4, code=_CODE)
STAGES = (STAGE, FINE_STAGE, DECODER_STAGE)
WIDTHS = (32, 32, 64, 64)
BATCH, FINE_BATCH = 16, 10
SHAPES = ((64, 64), (64, 64), (96, 48), (48, 96))  # width, height: the same number of pixels, more or less
_HEAPS, _FINE_HEAPS = 5, 1  # of a batch
_KL_WEIGHT = 1e-3  # per picture value; the evidence bound itself would take about 8e-3 at 30 dB
_STATISTICS_BATCHES = 40
MEASURED_BATCHES = 8


def trained_vae(build: Build) -> AutoencoderKL:
    """The trained VAE, in float32; its latents have mean 0, variance 1 and no correlations once they are scaled."""
    vae = new_vae(build.seed)

    def loss_of(step: int, count: int, heaps: int) -> Tensor:
        pictures = pictures_of(build.seed, step, count, heaps).contiguous(memory_format=torch.channels_last)
        with seeded(derived_seed(build.seed, step, "vae", "draw")), torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latent_dist
            there = vae.decode(latents.sample()).sample.float()
        divergence = latents.kl().float().mean() / pictures[0].numel()
        return F.l1_loss(there, pictures) + 2 * F.mse_loss(there, pictures) + _KL_WEIGHT * divergence

    run_stage(STAGE, vae, lambda step: loss_of(step, BATCH, _HEAPS), build)
    # its pictures follow those of the first stage
    run_stage(FINE_STAGE, vae, lambda step: loss_of(STAGE.steps + step, FINE_BATCH, _FINE_HEAPS), build)
    whiten(vae, build.seed, build.part(_STATISTICS_BATCHES))
    return vae


def new_vae(seed: int) -> AutoencoderKL:
    """The VAE before it has learned anything."""
    with seeded(derived_seed(seed, NO_EPOCH, "vae", "weights")):
        vae = AutoencoderKL(**vae_config("sd1", WIDTHS)).to(memory_format=torch.channels_last)
    use_fast_norms(vae)
    return vae


def sharpen_decoder(vae: AutoencoderKL, build: Build) -> None:
    """Trains the decoder further, in place; latents stay what they are, so whoever learned them need not learn anew."""

    def loss_of(step: int) -> Tensor:
        number = STAGE.steps + FINE_STAGE.steps + step
        pictures = pictures_of(build.seed, number, FINE_BATCH, _FINE_HEAPS, SIZES)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        with seeded(derived_seed(build.seed, number, "vae", "draw")), torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(pictures).latent_dist.sample()
            there = vae.decode(latents).sample.float()
        return F.l1_loss(there, pictures) + 4 * F.mse_loss(there, pictures)

    run_stage(DECODER_STAGE, vae.decoder, loss_of, build, before=(vae,))


def pictures_of(
    seed: int, step: int, count: int = BATCH, heaps: int = _HEAPS, sizes: Mapping[str, float] = SMALLER
) -> Tensor:
    """The pictures of a step: (count, 3, height, width), -1 to 1."""
    draw = generator(seed, step, "vae", "pictures")
    width, height = SHAPES[step % len(SHAPES)]
    drawn = [_heap(width, height, draw) for _ in range(heaps)]
    drawn += [draw_scene(random_scene(draw), width, height, draw, sizes) for _ in range(count - heaps)]
    return as_tensor(np.stack(drawn))


def _scenes(number: int, draw: np.random.Generator, sizes: Mapping[str, float]) -> Tensor:
    width, height = SHAPES[number % len(SHAPES)]
    return as_tensor(np.stack([draw_scene(random_scene(draw), width, height, draw, sizes) for _ in range(BATCH)]))


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
def whiten(vae: AutoencoderKL, seed: int, batches: int = _STATISTICS_BATCHES) -> None:
    """Folds into the two 1x1 convolutions around the latents what gives them, scaled, mean 0 and covariance 1.

    Reconstructions stay what they are. Noise that is added to latents then drowns all four channels alike.

    Args:
        batches: of pictures of the world, from which mean and covariance are told.
    """
    draw = generator(seed, NO_EPOCH, "vae", "statistics")
    means = [
        vae.encode(_scenes(number, draw, SMALLER)).latent_dist.mean.permute(0, 2, 3, 1).flatten(0, 2)
        for number in range(batches)
    ]
    found = torch.cat(means).double()
    middle = found.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(found.T))
    # the symmetric root: latents change as little as they can, and each stays where it was
    there = axes @ torch.diag((variances * VAE_SCALING_FACTOR**2) ** -0.5) @ axes.T
    back = torch.linalg.inv(there)
    into, out = vae.quant_conv, vae.post_quant_conv
    if into is None or into.bias is None or out is None or out.bias is None:
        raise ValueError("the VAE has no convolutions around its latents")
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


def measured(vae: AutoencoderKL, seed: int, batches: int = MEASURED_BATCHES) -> float:
    """Mean PSNR, in dB, over pictures of the world that it never saw."""
    draw = generator(seed, NO_EPOCH, "vae", "measure")
    found = []
    for number in range(batches):
        pictures = _scenes(number, draw, SIZES)
        with torch.no_grad():
            found.append(decibels(pictures, vae.decode(vae.encode(pictures).latent_dist.mode()).sample))
    return float(torch.cat(found).mean())

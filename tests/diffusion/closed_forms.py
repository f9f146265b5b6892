"""The formulas of the papers, written out a second time in float64 with numpy, for the tests of library/diffusion."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.float64]
TIMES = np.arange(1000)


def plain_alphas() -> Numbers:
    """Cumulated alphas of betas whose roots grow linearly."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


def stretched_alphas() -> Numbers:
    """The same with nothing of the picture left at the end (Lin et al. 2023)."""
    roots = np.sqrt(plain_alphas())
    scale = roots[0] / (roots[0] - roots[-1])
    return np.square(scale * (roots - roots[-1]))


def snr_of(alphas: Numbers) -> Numbers:
    return alphas / (1 - alphas)


def bilinear(coarse: Numbers, height: int, width: int) -> Numbers:
    """(C, a, b) scaled up to (C, height, width): pixels are squares, edges go on as they are."""

    def weights(cells: int, pixels: int) -> Numbers:
        matrix = np.zeros((pixels, cells))
        for pixel in range(pixels):
            place = max(0.0, (pixel + 0.5) * cells / pixels - 0.5)
            below = min(int(place), cells - 1)
            above = min(below + 1, cells - 1)
            matrix[pixel, below] += 1 - (place - below)
            matrix[pixel, above] += place - below
        return matrix

    down, across = weights(coarse.shape[1], height), weights(coarse.shape[2], width)
    return np.einsum("ya,cab,xb->cyx", down, coarse, across)

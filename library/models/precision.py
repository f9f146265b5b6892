"""Number formats of a saved model: weights are converted one at a time, while they are written."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from library.core.errors import UserError
from library.core.tensor_files import Deferred, Writable, made
from library.models.convert import vae

# What counts as a weight among the tensors of a single file; the noise schedule and unknown ones are left alone.
_WEIGHTS = ("model.", "model_ema.", "cond_stage_model.")
_NOT_WEIGHTS = ("model_ema.decay",)  # 0.9999: a half-precision 1.0 would stop the average


@dataclass(frozen=True)
class Precisions:
    """Number formats to write in; None keeps the one each tensor has.

    Attributes:
        weights: of the U-Net, the text encoder and what belongs to them.
        vae: of the VAE, which is never converted along with the others: it is not trained, and some overflow in fp16.
    """

    weights: torch.dtype | None = None
    vae: torch.dtype | None = None

    def of(self, name: str) -> torch.dtype | None:
        """The format for a tensor under its single-file name; None to leave it as it is."""
        if name.startswith(vae.PREFIX):
            return self.vae
        return self.weights if name.startswith(_WEIGHTS) and name not in _NOT_WEIGHTS else None


def in_precision(name: str, tensor: Writable, dtype: torch.dtype | None, where: Path) -> Writable:
    """The tensor in `dtype`, converted when it is made; itself where nothing changes or it holds no real numbers.

    Making it raises UserError, with `name` and `where`, when a finite value becomes infinite by the conversion.
    """
    if dtype is None or tensor.dtype == dtype or not tensor.dtype.is_floating_point:
        return tensor
    return Deferred(dtype, tuple(tensor.shape), partial(_convert, name, tensor, dtype, where))


def _convert(name: str, tensor: Writable, dtype: torch.dtype, where: Path) -> Tensor:
    source = made(tensor).detach()
    converted = source.to(dtype)
    # looked at as a whole first: that needs no memory beside the tensor
    if not _is_finite(converted) and bool((converted.isfinite() != source.isfinite()).any()):
        largest = float(source[source.isfinite()].abs().max())
        what = f"{name} holds {largest:.6g}, and {_short(dtype)} ends at {torch.finfo(dtype).max:.6g}"
        fix = "keep more range: --save_precision bf16 or float; for the VAE, --save_vae_precision"
        raise UserError.of(what, str(where), fix)
    return converted


def _is_finite(tensor: Tensor) -> bool:
    if tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)  # NaN wherever there is one
    return bool(low.isfinite() & high.isfinite())


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

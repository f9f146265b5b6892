"""The limit on the gradient norm (Pascanu et al. 2013)."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def clip_gradients(parameters: Sequence[torch.nn.Parameter], max_norm: float) -> torch.Tensor:
    """Scales all gradients down together when their common norm is above `max_norm`.

    Does what `torch.nn.utils.clip_grad_norm_` does, faster: a LoRA has hundreds of small tensors, and that function
    sorts them by device and number format at every call. Nothing is read from the device.

    Args:
        parameters: on one device; those without a gradient are left out.
        max_norm: infinite for no limit.

    Returns:
        The norm before scaling, a scalar tensor on the device.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm

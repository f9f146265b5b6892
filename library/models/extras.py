"""What a model's files hold beside the three networks in memory: kept, so that saving loses nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from library.core.tensor_files import Writable


@dataclass(frozen=True)
class ModelExtras:
    """Tensors under their single-file names that no network in memory uses, and the metadata of the file.

    Examples: OpenCLIP's unused last layer, `text_projection` and `logit_scale`; `position_ids`; the noise schedule
    (`betas`, `alphas_cumprod`); `model_ema.*`; anything unknown.
    """

    tensors: Mapping[str, Writable] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

"""The checks of the model that training starts from, from its files alone: nothing is loaded."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from library.core.errors import Problems
from library.models.hub import fetch_weights, locate
from library.models.identify import ModelIdentity, identify, resolve_prediction_type
from library.models.topology import FAMILIES
from library.options.model import ModelOptions
from library.options.text import TextOptions
from library.training.run import BaseModel

if TYPE_CHECKING:
    from library.models.vae_source import VaeIdentity

_MODEL_FLAG, _VAE_FLAG = "--pretrained_model_name_or_path", "--vae"


def check_base_model(model: ModelOptions, problems: Problems) -> BaseModel | None:
    """What `--pretrained_model_name_or_path` and `--vae` name; None, with the mistakes gathered, if it is unclear."""
    located = problems.attempt(lambda: locate(str(model.pretrained_model_name_or_path), _MODEL_FLAG))
    identity = problems.attempt(lambda: identify(located.path)) if located else None
    vae = problems.attempt(lambda: find_vae(str(model.vae), _VAE_FLAG)) if model.vae is not None else None
    if located is None or identity is None:
        return None
    predicts = problems.attempt(lambda: resolve_prediction_type(identity, model.v2, model.v_parameterization))
    if predicts is None:
        return None
    named = replace(identity, name=located.repo_id or identity.name)
    return BaseModel(named, predicts, located.repo_id, *(vae or ()))


def find_vae(name: str, flag: str) -> tuple[VaeIdentity, str]:
    """The VAE that `flag` names, and its name without folders. One of the Hub is fetched at once: it is small.

    Raises:
        UserError: there is none, it cannot be had, or it does not fit.
    """
    from library.models.vae_source import identify_vae  # with diffusers, which takes seconds to import

    located = locate(name, flag)
    if located.repo_id is not None:
        return identify_vae(fetch_weights(located.repo_id, flag, ("vae",))), located.repo_id
    return identify_vae(located.path), located.path.name


def check_clip_skip(identity: ModelIdentity, text: TextOptions, problems: Problems) -> None:
    """The chosen layer of the text encoder must exist, and be the user's to choose."""
    if text.clip_skip is None:
        return
    layers = FAMILIES[identity.family].text_layers
    if identity.family == "sd2":
        what = f"{identity.path} is Stable Diffusion 2.x, which always uses the penultimate layer of its text encoder"
        problems.add(what, "--clip_skip", "remove --clip_skip")
    elif text.clip_skip > layers:
        what = f"the text encoder has {layers} layers, layer {text.clip_skip} from the end does not exist"
        problems.add(what, "--clip_skip", "give 1 or 2, as the base model was trained")

"""What differs between the scripts once their options are checked: the method, and the form of what it saves."""

from __future__ import annotations

from dataclasses import replace

import torch

from library.core.device import dtype_of
from library.diffusion.objective import EncodeTokens
from library.methods.base import Method
from library.methods.embedding import Embedding, LayeredCaptions, LayeredEmbedding, start_vectors
from library.methods.full_model import FullModel, SavedForm
from library.methods.network import Network
from library.models.extras import read_extras
from library.models.forms import saved_precision
from library.models.hub import fetch_weights
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.models.stable_diffusion import StableDiffusion
from library.models.vae_source import load_vae
from library.text.encoder import CaptionEncoder, unused_layers
from library.text.tokenizer import CaptionTokenizer
from library.training.run import BaseModel, EmbeddingRun, FullModelRun, NetworkRun, Run


def make_method(run: Run, models: StableDiffusion) -> Method:
    """The method of a run; `models` are just loaded, in the number formats of their files."""
    options = run.options
    unused = unused_layers(models.text_encoder, options.text.clip_skip)
    if isinstance(run, NetworkRun):
        return Network(run.network, options.rates, options.training.seed, unused)
    if isinstance(run, FullModelRun):
        vae_dtype = saved_precision(run.saving.save_vae_precision, models.vae.dtype, run.form)
        # in memory: hours later the file may be gone, or be the very one that is replaced
        extras = read_extras(run.base.identity).without_ema().loaded()
        saved = SavedForm(run.form, vae_dtype, extras)
        return FullModel(options.rates, run.trains_text_encoder, unused, saved, run.text_encoder_stops)
    if isinstance(run, EmbeddingRun):
        table = models.text_encoder.embeddings.token_embedding.weight
        kind = LayeredEmbedding if run.word.layered else Embedding
        return kind(start_vectors(run.word.start, table, options.training.seed), options.rates.asked)
    raise TypeError(type(run).__name__)


def make_caption_encoder(run: Run) -> EncodeTokens:
    """What makes text states of a batch's captions."""
    encode = CaptionEncoder(run.options.text)
    if isinstance(run, EmbeddingRun) and run.word.layered:
        return LayeredCaptions(encode, run.word.alias.count)
    return encode


def make_tokenizer(run: Run) -> CaptionTokenizer:
    """The tokenizer of a run's captions; it knows the new word, where there is one."""
    alias = run.word.alias if isinstance(run, EmbeddingRun) else None
    return CaptionTokenizer(run.base.identity.family, run.options.text, alias)


def tracker_name(run: Run) -> str:
    """The name of a run's TensorBoard folder, as dashboards of this field know it."""
    if isinstance(run, FullModelRun):
        return run.tracker
    return "network_train" if isinstance(run, NetworkRun) else "textual_inversion"


def save_dtype(run: Run, loaded: torch.dtype) -> torch.dtype:
    """The number format of the trained weights in the file: that of the base model for a whole model, that of the
    training for a network, float32 for an embedding, unless `--save_precision` says otherwise."""
    asked = run.options.output.save_precision
    if isinstance(run, FullModelRun):
        return saved_precision(asked, loaded, run.form)
    if isinstance(run, EmbeddingRun):
        return dtype_of(asked or "float")
    return dtype_of(asked or run.options.training.mixed_precision)


def fetch_base_model(base: BaseModel) -> BaseModel:
    """The same model with everything on this machine that comes from the Hugging Face Hub.

    Raises:
        UserError: what the Hub holds cannot be had, or is no model after all.
    """
    if base.repo_id is None:
        return base
    path = fetch_weights(base.repo_id, "--pretrained_model_name_or_path")
    return replace(base, identity=replace(identify(path), name=base.repo_id))


def load_models(base: BaseModel) -> StableDiffusion:
    """The three networks as the files hold them, the VAE of `--vae` among them."""
    models = load_stable_diffusion(base.identity, base.prediction_type)
    return models if base.vae is None else replace(models, vae=load_vae(base.vae))

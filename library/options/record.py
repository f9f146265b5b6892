"""The options of a run as a state keeps them, and what it means when one of them has changed.

Every option of the training scripts has its place in a table below; one that stands nowhere is an error, so a new
option cannot be forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import Field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

from library.core.numbers import finite_number
from library.core.sizes import Size, Span
from library.options.base import OptionGroup, default_of, info_of, option_fields
from library.options.caching import CachingOptions
from library.options.config import ConfigOptions
from library.options.data import DataOptions
from library.options.embedding import EmbeddingOptions
from library.options.keeping import KeepingOptions
from library.options.logs import LogOptions
from library.options.memory import MemoryOptions
from library.options.model import ModelOptions
from library.options.network import DEFAULT_NETWORK_ALPHA, DEFAULT_NETWORK_DIM, NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions, PartRateOptions
from library.options.parse import OptionValues
from library.options.reg_images import RegImageOptions
from library.options.samples import SampleOptions
from library.options.saving import ModelSavingOptions
from library.options.scripts import TRAINING_SCRIPTS
from library.options.text import TextOptions
from library.options.training import DreamBoothOptions, FineTuningOptions, OutputOptions, TrainingOptions
from library.options.upload import UploadOptions
from library.options.validation import ValidationOptions

NETWORK, WHOLE_MODEL, EMBEDDING = "a network", "a whole model", "an embedding"
TRAINS = "trains"  # in a record, beside the options: one of these


class Kind(Enum):
    """What a change of an option means for a run that is resumed."""

    FREE = "nothing that is learned depends on it"
    BY_EFFECT = "what it leads to is compared: pictures, base model, rates, length of the run"
    DECIDES = "the resumed run is not the one that was begun"
    FIXED = "the weights of the state do not fit any more"
    STARTS = "it says where a new run begins, and a resumed one does not begin"


_WHOLE_GROUPS: Mapping[type[OptionGroup], Kind] = MappingProxyType(
    {
        ConfigOptions: Kind.FREE,
        OutputOptions: Kind.FREE,
        KeepingOptions: Kind.FREE,
        SampleOptions: Kind.FREE,
        LogOptions: Kind.FREE,
        UploadOptions: Kind.FREE,
        ModelSavingOptions: Kind.FREE,
        RegImageOptions: Kind.BY_EFFECT,
        PartRateOptions: Kind.BY_EFFECT,
        TextOptions: Kind.DECIDES,
        ObjectiveOptions: Kind.DECIDES,
    }
)
_SINGLE_OPTIONS: Mapping[type[OptionGroup], Mapping[Kind, str]] = MappingProxyType(
    {
        ModelOptions: {
            Kind.BY_EFFECT: "pretrained_model_name_or_path vae v_parameterization",
            Kind.FREE: "v2",  # checked, and of no effect
        },
        DataOptions: {
            Kind.BY_EFFECT: "dataset_config train_data_dir reg_data_dir in_json dataset_repeats resolution"
            " train_batch_size enable_bucket min_bucket_reso max_bucket_reso bucket_reso_steps bucket_no_upscale"
            " caption_extension allow_missing_captions caption_separator shuffle_caption keep_tokens"
            " keep_tokens_separator secondary_separator enable_wildcard caption_prefix caption_suffix"
            " caption_tag_dropout_rate caption_dropout_rate caption_dropout_every_n_epochs token_warmup_min"
            " token_warmup_step flip_aug color_aug random_crop face_crop_aug_range alpha_mask loss_weight"
            " validation_split validation_seed bad_images prior_loss_weight",
            Kind.DECIDES: "augmentation_variants",
            Kind.FREE: "cache_info debug_dataset max_data_loader_n_workers persistent_data_loader_workers",
        },
        CachingOptions: {
            # caches change no bit of a training, but for the way in which they are filled
            Kind.FREE: "cache_latents cache_latents_to_disk cache_text_encoder_outputs"
            " cache_text_encoder_outputs_to_disk",
            Kind.DECIDES: "cache_latent_distribution trust_foreign_latents vae_batch_size vae_precision",
        },
        NetworkOptions: {
            Kind.FIXED: "network_module network_dim dim_from_weights network_train_unet_only"
            " network_train_text_encoder_only",
            Kind.DECIDES: "network_alpha network_dropout network_args base_weights base_weights_multiplier"
            " scale_weight_norms",
            Kind.STARTS: "network_weights",
            Kind.FREE: "save_model_as",
        },
        TrainingOptions: {
            Kind.BY_EFFECT: "max_train_steps max_train_epochs",
            Kind.DECIDES: "gradient_accumulation_steps mixed_precision max_grad_norm seed",
            Kind.FREE: "gradient_checkpointing",  # the same numbers, computed twice
        },
        FineTuningOptions: {
            Kind.FIXED: "train_text_encoder hypernetwork_module",
            Kind.STARTS: "hypernetwork_weights",
        },
        DreamBoothOptions: {Kind.DECIDES: "stop_text_encoder_training"},
        EmbeddingOptions: {
            Kind.FIXED: "num_vectors_per_token xti",
            Kind.DECIDES: "token_string use_object_template use_style_template",
            Kind.STARTS: "init_word weights",
            Kind.FREE: "save_model_as",
        },
        OptimizerOptions: {
            Kind.BY_EFFECT: "learning_rate",
            Kind.DECIDES: "optimizer_type use_8bit_adam use_lion_optimizer optimizer_args lr_scheduler"
            " lr_scheduler_type lr_scheduler_args lr_warmup_steps lr_decay_steps lr_scheduler_num_cycles"
            " lr_scheduler_power lr_scheduler_min_lr_ratio lr_scheduler_timescale",
        },
        MemoryOptions: {
            Kind.FREE: "sdpa lowram",  # sdpa is what happens anyway
            # another order of sums gives other last bits
            Kind.DECIDES: "xformers diffusers_xformers mem_eff_attn fused_backward_pass torch_compile dynamo_backend",
            Kind.FIXED: "full_fp16 full_bf16",
        },
        ValidationOptions: {
            Kind.FREE: "validate_every_n_steps validate_every_n_epochs max_validation_steps",
            Kind.DECIDES: "ema ema_decay",
        },
    }
)
# what is in force where an option that has no default of its own is not given
_USUAL: Mapping[str, Any] = MappingProxyType(
    {
        "clip_skip": 1,
        "network_dim": DEFAULT_NETWORK_DIM,
        "network_alpha": DEFAULT_NETWORK_ALPHA,
        "num_vectors_per_token": 1,
        "lr_scheduler_num_cycles": 1,
        "lr_scheduler_power": 1.0,
    }
)
_USUAL_TIMESCALE = 10_000
_PLACES = ("DIR", "FILE", "MODEL")  # metavars of options that name a file or folder
_RECORDED = (Kind.DECIDES, Kind.FIXED, Kind.STARTS)


def kind_of(group: type[OptionGroup], name: str) -> Kind:
    """What a change of an option means.

    Raises:
        KeyError: it stands in no table.
    """
    if group in _WHOLE_GROUPS:
        return _WHOLE_GROUPS[group]
    for kind, names in _SINGLE_OPTIONS[group].items():
        if name in names.split():
            return kind
    raise KeyError(f"--{name}: say in library/options/record.py what it means for a resumed run")


def options_record(options: OptionValues) -> Mapping[str, Any]:
    """Names and values, fit for JSON, of the options whose change is noticed when a run is resumed; and what trains.

    No secrets, and of files and folders the bare names: states may be given to others.
    """
    values = {
        item.name: _as_json(getattr(group, item.name), item)
        for group in options.groups
        for item in option_fields(type(group))
        if not info_of(item).secret and kind_of(type(group), item.name) in _RECORDED
    }
    return {TRAINS: what_trains(options), **_in_force(values)}


def what_trains(options: OptionValues) -> str:
    """`NETWORK`, `WHOLE_MODEL` or `EMBEDDING`."""
    if options.has(EmbeddingOptions):
        return EMBEDDING
    tuning = options.of(FineTuningOptions) if options.has(FineTuningOptions) else None
    has_network = tuning is not None and (tuning.hypernetwork_module or tuning.hypernetwork_weights)
    return NETWORK if has_network or options.has(NetworkOptions) else WHOLE_MODEL


def recorded_kinds() -> dict[str, Kind]:
    """What a change of each recorded option means, by name."""
    return {item.name: kind_of(group, item.name) for group, item in _training_options() if _is_recorded(group, item)}


def recorded_defaults() -> dict[str, Any]:
    """What each recorded option is where nobody says otherwise, also in states that were written before it came."""
    return _in_force(
        {
            item.name: _as_json(default_of(item), item)
            for group, item in _training_options()
            if _is_recorded(group, item)
        }
    )


def _in_force(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with defaults filled in that are not those of the options themselves: to say one is no change.

    Ranks and numbers of vectors that only a file tells stay None.
    """
    usual = dict(_USUAL)
    if values.get("dim_from_weights"):
        del usual["network_dim"], usual["network_alpha"]
    if values.get("weights") is not None:
        del usual["num_vectors_per_token"]
    if values.get("hypernetwork_weights") is not None:
        usual["hypernetwork_module"] = "networks.hypernetwork"
    warmup = values.get("lr_warmup_steps", 0)
    if warmup == 0 or warmup >= 1:  # else a share of the run
        usual["lr_scheduler_timescale"] = int(warmup) or _USUAL_TIMESCALE
    found = {name: usual.get(name) if value is None else value for name, value in values.items()}
    if "base_weights" in values:
        given = [finite_number(word) for word in values["base_weights_multiplier"]]
        found["base_weights_multiplier"] = given or [1.0] * len(values["base_weights"])
    return found


def _is_recorded(group: type[OptionGroup], item: Field[Any]) -> bool:
    return kind_of(group, item.name) in _RECORDED


def _training_options() -> Iterator[tuple[type[OptionGroup], Field[Any]]]:
    for entry in TRAINING_SCRIPTS.values():
        for group in entry.groups:
            yield from ((group, item) for item in option_fields(group))


def _as_json(value: Any, item: Field[Any]) -> Any:
    names_place = info_of(item).metavar in _PLACES
    if isinstance(value, (tuple, Size, Span)):
        return [_bare(word) if names_place else word for word in value]
    return _bare(value) if names_place and value is not None else value


def _bare(path: str) -> str:
    return Path(path).absolute().name

"""Options that contradict each other, or that together leave something undone."""

from __future__ import annotations

from library.core.errors import Problems
from library.options.caching import TEXT_CACHE_FLAG, CachingOptions
from library.options.embedding import EmbeddingOptions
from library.options.memory import MemoryOptions
from library.options.network import NetworkOptions
from library.options.optimizer import PartRateOptions
from library.options.parse import OptionValues
from library.options.saving import ModelSavingOptions
from library.options.text import CHUNK_TOKENS, WEBUI_SPLITTING, TextOptions
from library.options.training import FineTuningOptions, TrainingOptions


def check_length(training: TrainingOptions, problems: Problems) -> None:
    """The run must have an end."""
    if training.max_train_steps is None and training.max_train_epochs is None:
        problems.add(
            "how long to train is not said",
            "--max_train_steps, --max_train_epochs",
            "give one of them; 1000 to 2000 steps is a usual start on some twenty pictures",
        )


def check_network_parts(network: NetworkOptions, rates: PartRateOptions, problems: Problems) -> None:
    """Something must train, and a rate must belong to a part that does."""
    unet_only, text_only = network.network_train_unet_only, network.network_train_text_encoder_only
    if unet_only and text_only:
        problems.add(
            "each excludes the other",
            "--network_train_unet_only, --network_train_text_encoder_only",
            "keep one of them, or none to train both parts",
        )
        return
    if unet_only and rates.text_encoder_lr is not None:
        problems.add("the text encoder does not train", "--text_encoder_lr", "remove it, or let the text encoder train")
    if text_only and rates.unet_lr is not None:
        problems.add("the U-Net does not train", "--unet_lr", "remove it, or --network_train_text_encoder_only")


def check_part_rates(rates: PartRateOptions, trains_text_encoder: bool, problems: Problems) -> None:
    """A rate must belong to a part of the whole model that trains."""
    if not trains_text_encoder and rates.text_encoder_lr is not None:
        fix = "remove it, or let the text encoder train"
        problems.add("the text encoder does not train", "--text_encoder_lr", fix)


def check_hypernetwork(tuning: FineTuningOptions, options: OptionValues, problems: Problems) -> None:
    """What of fine_tune.py means nothing where a hypernetwork is trained in the place of the model."""
    if tuning.hypernetwork_module is None:
        problems.add("no hypernetwork is trained", "--hypernetwork_weights", "give --hypernetwork_module as well")
    saving = options.of(ModelSavingOptions)
    asked = {
        "--train_text_encoder": tuning.train_text_encoder,
        "--save_model_as": saving.save_model_as is not None,
        "--use_safetensors": saving.use_safetensors,
        "--save_vae_precision": saving.save_vae_precision is not None,
    }
    for flag, is_asked in asked.items():
        if is_asked:
            fix = "remove it; a hypernetwork changes the U-Net only and is a .pt file"
            problems.add("it does not fit --hypernetwork_module", flag, fix)


def check_text(text: TextOptions, problems: Problems) -> None:
    """Longer captions are whole pieces of 75, and a mean can be restored only where weights changed it."""
    is_long = text.max_token_length > CHUNK_TOKENS
    if text.no_token_padding and is_long:
        problems.add(
            "pieces of 75 tokens are always padded",
            "--no_token_padding, --max_token_length",
            "remove one of them; --no_token_padding is for captions of up to 75 tokens",
        )
    if text.prompt_splitting == WEBUI_SPLITTING and not is_long:
        problems.add(
            "there is one piece of 75 tokens, so nothing is split",
            "--prompt_splitting webui",
            "give --max_token_length 150 or 225 as well, or remove it",
        )
    if text.restore_weighted_mean and not text.weighted_captions:
        problems.add(
            "it has no effect without weights",
            "--restore_weighted_mean",
            "give --weighted_captions as well, or remove it",
        )


def check_caching(
    caching: CachingOptions, text: TextOptions, text_encoder_learns: str | None, problems: Problems
) -> None:
    """Caches must be able to hold what they are asked to.

    Args:
        text_encoder_learns: why the outputs of the text encoder change during training; None where they do not.
    """
    keeps_latents = caching.cache_latents or caching.cache_latents_to_disk
    if caching.vae_batch_size > 1 and not keeps_latents:
        what = "it counts while a cache of latents is filled, and there is none"
        problems.add(what, "--vae_batch_size", "give --cache_latents as well, or remove it")
    if caching.trust_foreign_latents and not caching.cache_latents_to_disk:
        what = "latents of other programs are files"
        problems.add(what, "--trust_foreign_latents", "give --cache_latents_to_disk as well, or remove it")
    if caching.trust_foreign_latents and caching.cache_latent_distribution:
        what = "latents of other programs are single draws, not distributions"
        problems.add(what, "--trust_foreign_latents, --cache_latent_distribution", "remove one of them")
    if caching.keeps_texts and text_encoder_learns is not None:
        fix = "remove it; it is for a text encoder that stays as it is (train_network.py: --network_train_unet_only)"
        problems.add(text_encoder_learns, TEXT_CACHE_FLAG, fix)
    if caching.keeps_texts and text.no_token_padding:
        what = "captions of differing lengths have text states of differing shapes"
        problems.add(what, f"{TEXT_CACHE_FLAG}, --no_token_padding", "remove one of them")


def check_embedding(embedding: EmbeddingOptions, text: TextOptions, memory: MemoryOptions, problems: Problems) -> None:
    """An embedding starts from one thing, fits into a caption, changes what captions become, and takes no memory."""
    for flag, is_on in (("--full_fp16", memory.full_fp16), ("--full_bf16", memory.full_bf16)):
        if is_on:
            problems.add("the few vectors of a new word stay float32, it would save nothing", flag, "remove it")
    if embedding.use_object_template and embedding.use_style_template:
        flags = "--use_object_template, --use_style_template"
        problems.add("an embedding is an object or a style", flags, "keep one of them")
    if embedding.weights is not None and embedding.init_word is not None:
        what = "the embedding of the file is what training starts from"
        problems.add(what, "--weights, --init_word", "keep one of them")
    count = embedding.num_vectors_per_token
    if count is not None and count > text.max_token_length:
        what = f"a caption of {text.max_token_length} tokens has no room for {count} vectors"
        problems.add(what, "--num_vectors_per_token", "give fewer; 1 to 8 are usual")
    if text.weighted_captions:
        what = "weights in captions are not available for Textual Inversion"
        problems.add(what, "--weighted_captions", "remove it, and the weights in the captions")

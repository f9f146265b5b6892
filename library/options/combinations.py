"""Options that contradict each other, or that together leave something undone."""

from __future__ import annotations

from library.core.errors import Problems
from library.options.caching import CachingOptions
from library.options.embedding import EmbeddingOptions
from library.options.network import NetworkOptions
from library.options.text import CHUNK_TOKENS, WEBUI_SPLITTING, TextOptions
from library.options.training import TrainingOptions


def check_length(training: TrainingOptions, problems: Problems) -> None:
    """The run must have an end."""
    if training.max_train_steps is None and training.max_train_epochs is None:
        problems.add(
            "how long to train is not said",
            "--max_train_steps, --max_train_epochs",
            "give one of them; 1000 to 2000 steps is a usual start on some twenty pictures",
        )


def check_network_parts(network: NetworkOptions, problems: Problems) -> None:
    """Something must train, and a rate must belong to a part that does."""
    unet_only, text_only = network.network_train_unet_only, network.network_train_text_encoder_only
    if unet_only and text_only:
        problems.add(
            "each excludes the other",
            "--network_train_unet_only, --network_train_text_encoder_only",
            "keep one of them, or none to train both parts",
        )
        return
    if unet_only and network.text_encoder_lr is not None:
        problems.add("the text encoder does not train", "--text_encoder_lr", "remove it, or --network_train_unet_only")
    if text_only and network.unet_lr is not None:
        problems.add("the U-Net does not train", "--unet_lr", "remove it, or --network_train_text_encoder_only")


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


def check_embedding(
    embedding: EmbeddingOptions, text: TextOptions, caching: CachingOptions, problems: Problems
) -> None:
    """An embedding starts from one thing, fits into a caption, and changes what captions become."""
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
    kept = [name for name in ("cache_text_encoder_outputs", "cache_text_encoder_outputs_to_disk")
            if getattr(caching, name)]  # fmt: skip
    if kept:
        what = "what the text encoder makes of captions changes with the embedding, so it cannot be kept"
        problems.add(what, f"--{kept[0]}", "remove it")

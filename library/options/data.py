"""Which pictures are trained on, and how they are placed into batches."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from library.core.sizes import Size, Span
from library.options.base import OptionGroup, option
from library.options.checks import at_least, multiple_of, not_blank, rising_from, share


def default_worker_count() -> int:
    """Loader processes used unless the user says otherwise: CPU threads less one, 8 at most."""
    return min(8, max(0, (os.cpu_count() or 1) - 1))


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    """Dataset options. Those that a dataset file can give as well are the fallback for what it leaves out."""

    title: ClassVar[str] = "Dataset"

    dataset_config: str | None = option(
        None, "dataset file (.toml) with [general], [[datasets]] and [[datasets.subsets]]", metavar="FILE"
    )
    train_data_dir: str | None = option(
        None,
        "parent folder of folders named N_identifier class (N repeats), or a plain folder of pictures",
        metavar="DIR",
    )
    reg_data_dir: str | None = option(
        None, "parent folder of folders named N_class that hold regularisation pictures", metavar="DIR"
    )
    in_json: str | None = option(
        None,
        "metadata file (.json) with the captions and tags of the pictures in --train_data_dir; "
        "that folder may be left out where the file holds full paths",
        metavar="FILE",
    )
    dataset_repeats: int = option(
        1, "how often an epoch uses each picture of a metadata file", check=at_least(1), metavar="N"
    )
    resolution: Size | None = option(
        None, "training resolution: one number (square) or width,height; each divisible by 64", metavar="512 or 512,768"
    )
    train_batch_size: int = option(1, "pictures per batch", check=at_least(1), metavar="N")
    enable_bucket: bool = option(
        False, "sort pictures into buckets by aspect ratio instead of cropping all to one shape"
    )
    min_bucket_reso: int = option(256, "smallest side of a bucket", check=multiple_of(8), metavar="PIXELS")
    max_bucket_reso: int = option(1024, "largest side of a bucket", check=multiple_of(8), metavar="PIXELS")
    bucket_reso_steps: int = option(
        64, "step between bucket sizes, a multiple of 8", check=multiple_of(8), metavar="PIXELS"
    )
    bucket_no_upscale: bool = option(False, "never enlarge a picture; small ones get buckets of their own size")
    caption_extension: tuple[str, ...] = option(
        (), "extensions of caption files; without it .txt and .caption are both found", metavar=".EXT"
    )
    allow_missing_captions: bool = option(
        False, "train pictures that have neither a caption file nor class tokens with an empty caption"
    )
    caption_separator: str = option(",", "what separates the tags of a caption", check=not_blank, metavar="TEXT")
    shuffle_caption: bool = option(
        False, "put the comma-separated tags of a caption into another order at each use; brackets stay together"
    )
    keep_tokens: int = option(
        0,
        "so many first tags of a caption (commas are counted, not CLIP's tokens) stay in place and are never dropped",
        check=at_least(0),
        metavar="N",
    )
    keep_tokens_separator: str | None = option(
        None,
        "mark in captions, such as |||: tags before it stay in place and are never dropped; "
        "after a second one they stay at the end",
        check=not_blank,
        metavar="TEXT",
    )
    secondary_separator: str | None = option(
        None,
        "mark in captions, such as ;;;, that joins tags into one for shuffling and dropping; then it becomes a comma",
        check=not_blank,
        metavar="TEXT",
    )
    enable_wildcard: bool = option(
        False, "draw one of {a|b|c} in captions, and one line of a caption file, at each use; {{ and }} are mere braces"
    )
    caption_prefix: str | None = option(None, "text put in front of every caption", metavar="TEXT")
    caption_suffix: str | None = option(None, "text put behind every caption", metavar="TEXT")
    caption_tag_dropout_rate: float = option(
        0.0, "probability from 0 to 1 with which each tag is left out at a use", check=share, metavar="RATE"
    )
    caption_dropout_rate: float = option(
        0.0,
        "probability from 0 to 1 with which a picture is trained with an empty caption at a use",
        check=share,
        metavar="RATE",
    )
    caption_dropout_every_n_epochs: int = option(
        0, "every N-th epoch trains all pictures with an empty caption; 0 for none", check=at_least(0), metavar="N"
    )
    token_warmup_min: int = option(
        1, "number of tags at the start of the warm-up of --token_warmup_step", check=at_least(1), metavar="N"
    )
    token_warmup_step: float = option(
        0.0,
        "updates during which the number of used tags grows to all of them; below 1 a share of the run, 0 for none",
        check=at_least(0),
        metavar="N",
    )
    flip_aug: bool = option(
        False, "mirror half of the uses, left and right; harms subjects that are not symmetric, and text in pictures"
    )
    color_aug: bool = option(False, "shift hue or brightness a little in a third of the uses")
    random_crop: bool = option(False, "cut what sticks out of the bucket off at random places instead of evenly")
    face_crop_aug_range: Span | None = option(
        None,
        "cut around the face, to between these multiples of its size; file names end in _X_Y_WIDTH_HEIGHT of the face",
        check=rising_from(1.0),
        metavar="2.0,4.0",
    )
    augmentation_variants: int | None = option(
        None,
        "draw crops and colours from N fixed ones a picture, instead of anew at each use; latents can then be cached",
        check=at_least(1),
        metavar="N",
    )
    alpha_mask: bool = option(False, "weigh the loss by the pictures' transparency: transparent parts are not learned")
    loss_weight: float = option(
        1.0, "weight of the loss of the pictures; meant for subsets of a dataset file", check=at_least(0), metavar="W"
    )
    validation_split: float = option(
        0.0,
        "share of the pictures, from 0 to 1, that are kept out of the training to measure the validation loss on",
        check=share,
        metavar="SHARE",
    )
    validation_seed: int | None = option(
        None,
        "seed that chooses those pictures, and the noise that they are measured with; default: --seed",
        metavar="N",
    )
    cache_info: bool = option(
        False,
        "keep sizes and captions of the pictures in a file in their folder; the next start opens only what changed",
    )
    bad_images: str = option(
        "fail", "what to do about pictures that cannot be read: stop, or train without them", choices=("fail", "skip")
    )
    debug_dataset: bool = option(
        False, "show what would be trained on, then end: a window where there is a display, else a page (HTML file)"
    )
    prior_loss_weight: float = option(
        1.0, "weight of the loss of regularisation pictures", check=at_least(0), metavar="WEIGHT"
    )
    max_data_loader_n_workers: int | None = option(
        None,
        "processes that read pictures; 0 reads in the main process; default: CPU threads less one, 8 at most",
        check=at_least(0),
        metavar="N",
    )
    persistent_data_loader_workers: bool = option(
        False, "accepted for familiarity: the loader processes always stay between epochs"
    )

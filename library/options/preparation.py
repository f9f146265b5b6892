"""Metadata files: made from texts beside pictures, cleaned, and filled with what a training uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.core.sizes import Size
from library.options.base import OptionGroup, option, positional
from library.options.checks import at_least, multiple_of, not_blank

PRECISIONS = ("no", "fp16", "bf16")
_FULL_PATH = "name pictures by their full path, which is needed for several folders"
_MERGED = "metadata file (.json) to extend; without it the output file, if there is one, is extended"
_OUTPUT = "metadata file (.json) to write; where that changes a file, the old one stays as a backup"


@dataclass(frozen=True)
class MergeCaptionsOptions(OptionGroup):
    """Captions into a metadata file."""

    title: ClassVar[str] = "Captions into metadata"

    train_data_dir: tuple[str, ...] = positional(
        "folder of pictures with captions, or several", metavar="DIR", many=True
    )
    out_json: str = positional(_OUTPUT, metavar="OUT_JSON")
    in_json: str | None = option(None, _MERGED, metavar="FILE")
    full_path: bool = option(False, _FULL_PATH)
    recursive: bool = option(False, "take the folders below as well")
    caption_extension: str = option(
        ".caption", "ending of the caption files", check=not_blank, metavar=".EXT", aliases=("caption_extention",)
    )


@dataclass(frozen=True)
class MergeTagsOptions(OptionGroup):
    """Tags into a metadata file."""

    title: ClassVar[str] = "Tags into metadata"

    train_data_dir: tuple[str, ...] = positional("folder of pictures with tags, or several", metavar="DIR", many=True)
    out_json: str = positional(_OUTPUT, metavar="OUT_JSON")
    in_json: str | None = option(None, _MERGED, metavar="FILE")
    full_path: bool = option(False, _FULL_PATH)
    recursive: bool = option(False, "take the folders below as well")
    caption_extension: str = option(".txt", "ending of the tag files", check=not_blank, metavar=".EXT")


@dataclass(frozen=True)
class CleaningOptions(OptionGroup):
    """Captions and tags of a metadata file, made uniform."""

    title: ClassVar[str] = "Cleaning"

    in_json: str = positional("metadata file (.json) to clean", metavar="IN_JSON")
    out_json: str = positional(_OUTPUT, metavar="OUT_JSON")
    rules: str | None = option(
        None,
        "rules of cleaning (.toml); default: finetune/cleaning_rules.toml, which says how to write one's own",
        metavar="FILE",
    )
    dry_run: bool = option(False, "show what would change, and write nothing")


@dataclass(frozen=True)
class LatentPreparationOptions(OptionGroup):
    """Latents and buckets of pictures, stored for training."""

    title: ClassVar[str] = "Latents and buckets"

    train_data_dir: tuple[str, ...] = positional("folder of pictures, or several", metavar="DIR", many=True)
    in_json: str = positional("metadata file (.json) that names the pictures", metavar="IN_JSON")
    out_json: str = positional(_OUTPUT, metavar="OUT_JSON")
    model_name_or_path: str = positional(
        "model whose VAE encodes: a file, a Diffusers folder, or owner/name on the Hugging Face Hub", metavar="MODEL"
    )
    v2: bool = option(False, "the model is a Stable Diffusion 2.x")
    vae: str | None = option(None, "another VAE: file, folder, or owner/name", metavar="FILE")
    full_path: bool = option(False, "the metadata names pictures by their full path")
    recursive: bool = option(False, "take the folders below as well")
    max_resolution: Size = option(
        Size(512, 512), "training resolution: width,height, or one number; each divisible by 64", metavar="512,512"
    )
    min_bucket_reso: int = option(256, "smallest side of a bucket", check=multiple_of(8), metavar="PIXELS")
    max_bucket_reso: int = option(1024, "largest side of a bucket", check=multiple_of(8), metavar="PIXELS")
    bucket_reso_steps: int = option(
        64, "step between bucket sizes, a multiple of 8", check=multiple_of(8), metavar="PIXELS"
    )
    bucket_no_upscale: bool = option(False, "never enlarge a picture; small ones get buckets of their own size")
    flip_aug: bool = option(False, "store the mirrored pictures as well, for a training with --flip_aug")
    alpha_mask: bool = option(False, "store the pictures' transparency as well, for a training with --alpha_mask")
    batch_size: int = option(
        1,
        "pictures read ahead for the VAE, which takes one at a time, so that latents never depend on this",
        check=at_least(1),
        metavar="N",
    )
    mixed_precision: str = option("no", "number format the VAE computes in; no is float32", choices=PRECISIONS)
    max_data_loader_n_workers: int | None = option(
        None,
        "processes that read pictures; 0 reads in the main process; default: CPU threads less one, 8 at most",
        check=at_least(0),
        metavar="N",
    )
    skip_existing: bool = option(
        False, "accepted for familiarity: latents that fit their picture and the VAE are never made twice"
    )

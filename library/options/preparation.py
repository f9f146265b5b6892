"""Metadata files: made from texts beside pictures, cleaned, and filled with what a training uses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.core.sizes import Size
from library.options.base import OptionGroup, option, positional
from library.options.checks import at_least, between, multiple_of

PRECISIONS = ("no", "fp16", "bf16")
INTERPOLATIONS = ("area", "box", "linear", "cubic", "lanczos4", "nearest")
_THREADS = "threads that read pictures; default: CPU threads less one, 8 at most"
_FULL_PATH = "name pictures by their full path, which is needed for several folders"
_MERGED = "metadata file (.json) to extend; without it the output file, if there is one, is extended"
_OUTPUT = "metadata file (.json) to write; where that changes a file, the old one stays as a backup"


def _is_ending(value: str) -> str | None:
    """A check: the ending of a file's name, with its dot."""
    if len(value.strip()) < 2 or not value.startswith("."):
        return f"must begin with a dot, such as .txt, got {value!r}"
    return f"must be one ending, got {value!r}" if set(value) & set(",/\\") else None


def parse_resolutions(text: str) -> tuple[Size, ...]:
    """Resolutions as guides write them, 512x512,384x384: width x height, with commas between.

    Raises:
        ValueError: with a sentence that says what is wrong.
    """
    found: list[Size] = []
    for part in text.split(","):
        numbers = part.strip().lower().split("x")
        if len(numbers) != 2 or not all(number.isascii() and number.isdigit() and int(number) for number in numbers):
            raise ValueError(f"width x height (512x512), or several with commas between, is expected, got {part!r}")
        found.append(Size(int(numbers[0]), int(numbers[1])))
    if len(set(found)) < len(found):
        raise ValueError(f"each resolution can be given once, got {text}")
    return tuple(found)


def resolutions(text: str) -> str | None:
    """A check: see `parse_resolutions`."""
    try:
        parse_resolutions(text)
    except ValueError as error:
        return str(error)
    return None


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
        ".caption", "ending of the caption files", check=_is_ending, metavar=".EXT", aliases=("caption_extention",)
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
    caption_extension: str = option(
        ".txt", "ending of the tag files", check=_is_ending, metavar=".EXT", aliases=("caption_extention",)
    )


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
    full_path: bool = option(False, "the metadata must name pictures by their full path; without this it may")
    recursive: bool = option(
        False, "tell of pictures without an entry in the folders below as well; entries always count there"
    )
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


@dataclass(frozen=True)
class ResizeOptions(OptionGroup):
    """Smaller copies of pictures."""

    title: ClassVar[str] = "Smaller copies"

    src_img_folder: str = positional("folder of pictures", metavar="SRC")
    dst_img_folder: str = positional("folder that gets the smaller copies; made where it is missing", metavar="DST")
    max_resolution: str = option(
        "512x512,384x384,256x256,128x128",
        "largest areas of the copies, as width x height with commas between; each picture gets a copy for each, "
        "in its own proportions and never enlarged",
        check=resolutions,
        metavar="512x512,384x384",
    )
    divisible_by: int = option(
        1, "make width and height divisible by this; what is too much is cut off evenly", check=at_least(1), metavar="N"
    )
    interpolation: str = option(
        "area", "how pixels are put together; area and box take means, lanczos4 is the sharpest", choices=INTERPOLATIONS
    )
    save_as_png: bool = option(
        False, "write PNG, which keeps transparency; otherwise JPEG of quality 100, with white where it was transparent"
    )
    copy_associated_files: bool = option(
        False, "copy captions, and other files named like the picture, beside each copy; cached latents (.npz) never"
    )
    recursive: bool = option(False, "take the folders below as well; they are made in DST, too")
    overwrite: bool = option(
        False, "write copies anew that are there already; without it they stay, and a stopped run goes on where it was"
    )
    max_data_loader_n_workers: int | None = option(None, _THREADS, check=at_least(1), metavar="N")


@dataclass(frozen=True)
class DuplicateOptions(OptionGroup):
    """Pictures that are there more than once."""

    title: ClassVar[str] = "Duplicates"

    train_data_dir: tuple[str, ...] = positional("folder of pictures, or several", metavar="DIR", many=True)
    recursive: bool = option(False, "take the folders below as well")
    threshold: int = option(
        12,
        "bits of 63 in which the hashes of two pictures may differ for them to be compared; more finds copies that "
        "were changed more, and takes longer",
        check=between(0, 32),
        metavar="BITS",
    )
    mirrored: bool = option(False, "look for mirrored copies as well, which --flip_aug would train twice")
    caption_extension: str | None = option(
        None,
        "ending of the caption files that are compared; default: .txt and .caption",
        check=_is_ending,
        metavar=".EXT",
    )
    json: str | None = option(None, "write what was found for a program to read", metavar="FILE")
    html: str | None = option(None, "write a page with the pictures side by side, for any browser", metavar="FILE")
    max_data_loader_n_workers: int | None = option(None, _THREADS, check=at_least(1), metavar="N")

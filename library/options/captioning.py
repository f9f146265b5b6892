"""Captions and tags that models write for pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from library.options.base import OptionGroup, option, positional
from library.options.checks import above, at_least, between, not_blank, share

DEFAULT_BLIP = "Salesforce/blip-image-captioning-large"
DEFAULT_TAGGER = "SmilingWolf/wd-v1-4-convnext-tagger-v2"


@dataclass(frozen=True)
class FolderOptions(OptionGroup):
    """Pictures that get a text file each, and how they are worked through."""

    title: ClassVar[str] = "Pictures"

    train_data_dir: tuple[str, ...] = positional("folder of pictures, or several", metavar="DIR", many=True)
    recursive: bool = option(False, "take the folders below as well")
    overwrite: bool = option(
        False, "write texts anew that are there already; without it they stay, and a stopped run goes on where it was"
    )
    max_data_loader_n_workers: int | None = option(
        None,
        "threads that read pictures while the model works; default: CPU threads less one, 8 at most",
        check=at_least(1),
        metavar="N",
    )


@dataclass(frozen=True)
class BlipOptions(OptionGroup):
    """How BLIP words its captions."""

    title: ClassVar[str] = "Captions by BLIP"

    caption_weights: str = option(
        DEFAULT_BLIP,
        "BLIP model: a folder as transformers saves it, or owner/name on the Hugging Face Hub",
        metavar="ID",
    )
    model_dir: str | None = option(
        None, "folder that keeps the model when it comes from the Hub; default: the Hub's own cache", metavar="DIR"
    )
    force_download: bool = option(False, "fetch the model anew")
    prompt: str = option(
        "a picture of",
        "words that every caption goes on from; they are not written. Empty: the model begins as it likes",
        metavar="TEXT",
    )
    batch_size: int = option(
        1,
        "pictures captioned together; faster on a card, and the captions are the same. A search with beams takes one "
        "picture at a time whatever stands here",
        check=at_least(1),
        metavar="N",
    )
    caption_extension: str = option(
        ".caption",
        "ending of the files that are written",
        check=not_blank,
        metavar=".EXT",
        aliases=("caption_extention",),
    )
    beam_search: bool = option(
        False,
        "look for the likeliest caption with --num_beams instead of drawing one: sober, the same for every seed, and "
        "alike for similar pictures",
    )
    num_beams: int = option(
        1,
        "with --beam_search: how many beginnings are followed side by side; 3 is usual, 1 takes the likeliest word "
        "each time",
        check=at_least(1),
        metavar="N",
    )
    top_p: float = option(
        0.9,
        "without --beam_search: each word is drawn from the likeliest ones that together have this probability; "
        "lower is safer, higher more varied",
        check=between(0.01, 1.0),
        metavar="P",
    )
    max_length: int = option(
        75,
        "longest caption in tokens of BLIP (some 0.8 words each), counting the prompt and one for the beginning; "
        "what would be longer is cut off there",
        check=at_least(2),
        metavar="N",
    )
    min_length: int = option(
        5, "shortest caption, counted in the same way; it cannot end before", check=at_least(0), metavar="N"
    )
    repetition_penalty: float = option(
        1.1,
        "above 1 words that were said, also in the prompt, are less likely to come again; 1 for none",
        check=above(0),
        metavar="X",
    )
    seed: int = option(
        42,
        "of what is drawn; besides the model and these options a picture's caption depends on this, its file name and "
        "its content alone",
        metavar="N",
    )


@dataclass(frozen=True)
class TaggerOptions(OptionGroup):
    """Which tags a tagger writes, and how."""

    title: ClassVar[str] = "Tags"

    repo_id: str = option(DEFAULT_TAGGER, "tagger on the Hugging Face Hub, as owner/name", metavar="ID")
    model_dir: str = option(
        "wd14_tagger_model",
        "folder that keeps taggers; each has a folder there, or one tagger and its list of tags lie in it directly",
        metavar="DIR",
    )
    force_download: bool = option(False, "fetch the tagger anew")
    batch_size: int = option(
        1,
        "pictures tagged together on a card; the CPU takes one at a time, which is as fast",
        check=at_least(1),
        metavar="N",
    )
    caption_extension: str = option(
        ".txt",
        "ending of the files that are written",
        check=not_blank,
        metavar=".EXT",
        aliases=("caption_extention",),
    )
    thresh: float = option(
        0.35,
        "confidence from which a tag is written; lower gives more tags, and more wrong ones",
        check=share,
        metavar="P",
    )
    general_threshold: float | None = option(
        None, "the same for general tags alone; default: --thresh", check=share, metavar="P"
    )
    character_threshold: float | None = option(
        None, "the same for names of characters alone; default: --thresh", check=share, metavar="P"
    )
    remove_underscore: bool = option(False, "write long_hair as long hair; faces such as ^_^ stay as they are")
    undesired_tags: str = option("", "tags that are never written, separated by commas", metavar="A,B")
    always_first_tags: str = option(
        "", "tags that come first where they are found, in this order, separated by commas", metavar="A,B"
    )
    tag_replacement: str = option(
        "",
        r"tags that are written as others: a,b;c,d writes b for a and d for c; \, and \; are a comma and a semicolon",
        metavar="A,B;C,D",
    )
    use_rating_tags: bool = option(False, "write the likeliest rating (general, sensitive, …) in front")
    use_rating_tags_as_last_tag: bool = option(False, "write it at the end")
    character_tags_first: bool = option(False, "write names of characters before the general tags")
    caption_separator: str = option(", ", "what stands between two tags", metavar="TEXT")
    append_tags: bool = option(
        False, "add tags to texts that are there already, behind what they hold, where they are not there yet"
    )
    frequency_tags: bool = option(False, "show at the end how often each tag stands in the texts of these pictures")
    onnx: bool = option(False, "accepted for familiarity: taggers always run as ONNX")

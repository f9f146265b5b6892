"""Which options each script understands: the one list that the scripts, `--help` and docs/options.md share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from library.options.base import OptionGroup
from library.options.caching import CachingOptions
from library.options.captioning import BlipOptions, FolderOptions, TaggerOptions
from library.options.data import DataOptions
from library.options.embedding import EmbeddingOptions
from library.options.keeping import KeepingOptions
from library.options.logs import LogOptions
from library.options.memory import MemoryOptions
from library.options.model import ModelOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions, PartRateOptions
from library.options.preparation import (
    CleaningOptions,
    DuplicateOptions,
    LatentPreparationOptions,
    MergeCaptionsOptions,
    MergeTagsOptions,
    ResizeOptions,
)
from library.options.reg_images import RegImageOptions
from library.options.report import ReportOptions
from library.options.samples import SampleOptions
from library.options.saving import ModelSavingOptions
from library.options.text import TextOptions
from library.options.training import DreamBoothOptions, FineTuningOptions, OutputOptions, TrainingOptions
from library.options.upload import UploadOptions
from library.options.validation import ValidationOptions


@dataclass(frozen=True)
class Script:
    """A script's own sentence and its option groups."""

    description: str
    groups: tuple[type[OptionGroup], ...]


_PICTURES: tuple[type[OptionGroup], ...] = (ModelOptions, DataOptions, RegImageOptions, CachingOptions, TextOptions)
_LOOP: tuple[type[OptionGroup], ...] = (
    *(TrainingOptions, ObjectiveOptions, OptimizerOptions, MemoryOptions, ValidationOptions, OutputOptions),
    *(KeepingOptions, SampleOptions, LogOptions, UploadOptions),
)

TRAINING_SCRIPTS: Mapping[str, Script] = MappingProxyType(
    {
        "train_network.py": Script(
            "Trains a LoRA (or another network module) on your own pictures, beside a frozen base model.",
            (*_PICTURES, NetworkOptions, PartRateOptions, *_LOOP),
        ),
        "train_db.py": Script(
            "Trains a whole model, U-Net and text encoder, on your own pictures (DreamBooth and fine-tuning).",
            (*_PICTURES, DreamBoothOptions, PartRateOptions, *_LOOP, ModelSavingOptions),
        ),
        "fine_tune.py": Script(
            "Trains a whole model, the U-Net alone or the text encoder as well, on pictures with captions.",
            (*_PICTURES, FineTuningOptions, PartRateOptions, *_LOOP, ModelSavingOptions),
        ),
        "train_textual_inversion.py": Script(
            "Trains the vectors of a new word (Textual Inversion) on your own pictures, beside a frozen model.",
            (*_PICTURES, EmbeddingOptions, *_LOOP),
        ),
    }
)
_OTHERS: Mapping[str, Script] = MappingProxyType(
    {
        "finetune/make_captions.py": Script(
            "Writes a caption beside every picture, in the words of a BLIP model.", (FolderOptions, BlipOptions)
        ),
        "finetune/tag_images_by_wd14_tagger.py": Script(
            "Writes tags beside every picture, by a WD tagger or a DeepDanbooru model in ONNX form.",
            (FolderOptions, TaggerOptions),
        ),
        "finetune/merge_captions_to_metadata.py": Script(
            "Gathers the caption files of pictures in one metadata file.", (MergeCaptionsOptions,)
        ),
        "finetune/merge_dd_tags_to_metadata.py": Script(
            "Gathers the tag files of pictures in one metadata file.", (MergeTagsOptions,)
        ),
        "finetune/clean_captions_and_tags.py": Script(
            "Makes captions and tags of a metadata file uniform, by rules in a file.", (CleaningOptions,)
        ),
        "finetune/prepare_buckets_latents.py": Script(
            "Encodes the pictures of a metadata file once, and stores latents and buckets for training.",
            (LatentPreparationOptions,),
        ),
        "tools/dataset_report.py": Script(
            "Shows what a training would do with its pictures. Needs no model.",
            (DataOptions, CachingOptions, TextOptions, TrainingOptions, ReportOptions),
        ),
        "tools/find_duplicates.py": Script(
            "Finds pictures that are there more than once, also resized, compressed, cropped or brightened.",
            (DuplicateOptions,),
        ),
        "tools/resize_images_to_resolution.py": Script(
            "Makes smaller copies of pictures, one for each resolution.", (ResizeOptions,)
        ),
    }
)
SCRIPTS: Mapping[str, Script] = MappingProxyType({**TRAINING_SCRIPTS, **_OTHERS})

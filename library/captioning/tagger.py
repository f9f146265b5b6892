"""Tags by a model of the WD family or by DeepDanbooru, as a describer that the runner drives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from library.captioning.describer import Decoded
from library.captioning.tag_list import Category, Family, TaggerFiles, TagList, read_tag_list
from library.captioning.tag_model import TagModel
from library.captioning.tag_options import check_names
from library.captioning.tag_text import TagChoice, joined_tags, plan_tags, tag_line, threshold_of, torn_tags
from library.captioning.tagger_pictures import load_upright, on_white_square, with_repeated_edges
from library.core.errors import Problems, printable
from library.core.log import get_logger
from library.core.wording import some_of
from library.data.pictures.images import Pixels
from library.options.captioning import TaggerOptions

_LOG = get_logger(__name__)
_TOLD = 3


class Tagger:
    """Writes the tags of pictures; see `Describer`."""

    def __init__(self, model: TagModel, family: Family, choice: TagChoice, options: TaggerOptions) -> None:
        self._model, self._family, self._choice, self._options = model, family, choice, options

    def read(self, path: Path) -> Pixels:
        """The picture in its square: uint8 (side, side, 3), red, green, blue.

        Raises:
            UserError: when the file is no readable picture; it is named.
        """
        side = self._model.side
        fill = on_white_square if self._family is Family.WD else with_repeated_edges
        return fill(load_upright(path, side), side)

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> list[str]:
        """A line of tags for each picture.

        Raises:
            UserError: with every picture for which the model gave no probabilities.
        """
        confidences = self._model.confidences([np.asarray(pixels, np.uint8) for pixels in pictures])
        problems = Problems()
        for row, path in zip(confidences, paths, strict=True):
            if not np.isfinite(row).all():
                what = "the tagger gave numbers that are no probabilities (NaN or beyond 1)"
                problems.add(what, str(path), "take the picture out of the folder, or take another tagger")
        problems.raise_if_any()
        return [tag_line(row, self._choice) for row in confidences]

    def why_empty(self) -> tuple[str, str]:
        """No tag was likely enough, or only undesired ones."""
        general, character = (threshold_of(self._options, kind) for kind in (Category.GENERAL, Category.CHARACTER))
        shown = f"{general:g}" if general == character else f"{general:g} (names of characters: {character:g})"
        flag = "--thresh" if self._options.general_threshold is None else "--general_threshold"
        return f"no tag that is wanted reaches the threshold of {shown}", f"give a lower {flag}"

    def joined(self, old: str, new: str) -> str:
        """The old text, and behind it the new tags that are not there yet."""
        return joined_tags(old, new, self._options.caption_separator)


def open_tagger(files: TaggerFiles, options: TaggerOptions) -> Tagger:
    """Reads the list of tags, checks the options against it, then opens the model.

    Raises:
        UserError: the list or the model cannot be used, or options ask for what the list does not hold.
    """
    tags = read_tag_list(files)
    check_names(options, tags)
    choice = plan_tags(tags, options)
    _tell(files, tags, choice)
    return Tagger(TagModel(files, len(tags.names), options.batch_size), files.family, choice, options)


def _tell(files: TaggerFiles, tags: TagList, choice: TagChoice) -> None:
    _LOG.info("%s", printable(f"{files.family.value} with {len(tags.names)} tags: {files.model}"))
    torn = torn_tags(choice, tags)
    if torn:
        told = printable(some_of(torn[:_TOLD], len(torn)))
        _LOG.warning("tags that hold a comma, or what stands between tags, will be read as several: %s", told)

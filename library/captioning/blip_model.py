"""BLIP's three parts out of a folder: the network, its words, and the form in which it takes pictures.

Classes are named here, never by the files, so nothing that lies in the folder runs: weights are safetensors, or
PyTorch's format read with `weights_only`. What transformers passes over with a warning (weights that are missing, a
tokenizer without words) is an error.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration, BlipTextConfig
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.utils import logging as transformers_logging

from library.captioning.blip_files import weights_of
from library.core.errors import UserError
from library.core.sizes import Size

_AGAIN = "copy or fetch the model again"
_SHOWN = 3


@dataclass(frozen=True)
class PictureForm:
    """How pixels become numbers: value * `factor`, less `mean`, by `spread`; the last two (3,) for red, green, blue."""

    size: Size
    factor: float
    mean: NDArray[np.float32]
    spread: NDArray[np.float32]

    def of(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Turns uint8 (H, W, 3) into float32 (3, H, W)."""
        values = (pixels.astype(np.float32) * np.float32(self.factor) - self.mean) / self.spread
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def load_form(folder: Path) -> PictureForm:
    """The form that the model's processor describes.

    Raises:
        UserError: it describes something else than scaling to one size and normalising.
    """
    with _told_plainly(folder, "what describes its pictures"), _quiet():
        processor = BlipImageProcessorPil.from_pretrained(folder, local_files_only=True)
        size = {key: int(value) for key, value in dict(processor.size).items() if value is not None}
        form = PictureForm(
            Size(size.get("width", 0), size.get("height", 0)),
            float(processor.rescale_factor) if processor.do_rescale else 1.0,
            _three(processor.image_mean if processor.do_normalize else 0.0),
            _three(processor.image_std if processor.do_normalize else 1.0),
        )
    numbers = (*form.mean, *form.spread, form.factor)
    is_sound = bool(np.isfinite(numbers).all()) and all(form.spread > 0)
    is_usual = set(size) == {"width", "height"} and min(form.size) > 0 and processor.do_resize
    if not is_sound or not is_usual or getattr(processor, "do_center_crop", None) or getattr(processor, "do_pad", None):
        what = "the model takes pictures otherwise than BLIP does: scaled to one width and height, then normalised"
        raise UserError.of(what, str(folder), _AGAIN)
    return form


def load_tokenizer(folder: Path) -> BertTokenizer:
    """The model's words.

    Raises:
        UserError: they cannot be read, or there are none.
    """
    with _told_plainly(folder, "its tokenizer"), _quiet():
        tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers makes such a one where it finds nothing
        raise UserError.of("its tokenizer has no words", str(folder), _AGAIN)
    return tokenizer


def load_config(folder: Path) -> BlipConfig:
    """What config.json says of the network.

    Raises:
        UserError: it makes no sense.
    """
    with _told_plainly(folder, "its config.json"), _quiet():
        return BlipConfig.from_pretrained(folder, local_files_only=True)


def load_network(folder: Path, device: torch.device) -> BlipForConditionalGeneration:
    """The network in float32 on `device`, in evaluation mode.

    Raises:
        UserError: the weights cannot be read, are not all there, or are no numbers.
    """
    with _told_plainly(folder, "its weights"), _quiet():
        loader: Any = BlipForConditionalGeneration  # what is returned depends on the last argument
        network, report = loader.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",  # else the folder says, and may name code on the Hub
            use_safetensors=weights_of(folder) != "pytorch_model.bin",
            weights_only=True,
            trust_remote_code=False,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # they are told below
            output_loading_info=True,
        )
    absent = sorted([*report["missing_keys"], *(str(key[0]) for key in report["mismatched_keys"])])
    if absent:
        more = ", …" if len(absent) > _SHOWN else ""
        what = f"{len(absent)} weights are missing or of another size than config.json says: "
        raise UserError.of(what + ", ".join(absent[:_SHOWN]) + more, str(folder), _AGAIN)
    broken = [name for name, weight in network.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise UserError.of(f"weights hold values that are no numbers: {broken[0]}", str(folder), _AGAIN)
    moved: BlipForConditionalGeneration = network.to(device).eval()
    return moved


def text_config(config: BlipConfig) -> BlipTextConfig:
    """The part that tells of words."""
    words = config.text_config
    if not isinstance(words, BlipTextConfig):
        raise TypeError(f"BLIP's words are described by {type(words).__name__}")
    return words


def check_fit(config: BlipConfig, tokenizer: BertTokenizer, form: PictureForm, folder: Path) -> None:
    """Whether the three parts belong together.

    Raises:
        UserError: they do not, or a mark that the network needs is none of its words.
    """
    words, sight = text_config(config), vars(config.vision_config)
    for name in ("bos_token_id", "sep_token_id", "pad_token_id"):
        mark: Any = getattr(words, name)
        if type(mark) is not int or not 0 <= mark < words.vocab_size:
            what = (
                f"config.json: {name} of text_config must be a word's number, 0 to {words.vocab_size - 1}, got {mark}"
            )
            raise UserError.of(what, str(folder), _AGAIN)
    end = tokenizer.convert_tokens_to_ids(tokenizer.sep_token)
    if words.sep_token_id != end or len(tokenizer) > words.vocab_size:
        what = f"the tokenizer ({len(tokenizer)} words, end {end}) is not that of the model "
        what += f"({words.vocab_size} words, end {words.sep_token_id})"
        raise UserError.of(what, str(folder), _AGAIN)
    sides = list(np.broadcast_to(sight["image_size"], 2))
    if sides != [form.size.height, form.size.width]:
        what = f"pictures are to be scaled to {form.size}, but the model takes {sides[1]}x{sides[0]}"
        raise UserError.of(what, str(folder), _AGAIN)


def _three(value: Any) -> NDArray[np.float32]:
    """One number for each colour, from three or one."""
    return np.broadcast_to(np.asarray(value, dtype=np.float32), 3).copy()


@contextmanager
def _told_plainly(folder: Path, part: str) -> Iterator[None]:
    try:
        yield
    except pickle.UnpicklingError as error:  # torch's own words tell how to open it all the same
        if "Unsupported operand" in str(error):
            raise UserError.of(f"{part} are in no form that torch knows", str(folder), _AGAIN) from None
        what = f"{part} (pytorch_model.bin) hold more than weights, and are not opened"
        raise UserError.of(what, str(folder), "take the model's model.safetensors instead") from None
    except Exception as error:  # files that make no sense go wrong in every way there is
        reason = (str(error).strip() or "no reason given").splitlines()[0]
        what = f"{part} cannot be read: {type(error).__name__}: {reason}"
        raise UserError.of(what, str(folder), _AGAIN) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bar that transformers shows for a moment, and its report, which tells of weights nobody needs."""
    had_bar, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(transformers_logging.CRITICAL)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if had_bar:
            transformers_logging.enable_progress_bar()

"""Captions by BLIP (Li et al. 2022, arXiv 2201.12086), through transformers' classes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertTokenizer, BlipTextConfig, GenerationConfig, LogitsProcessorList

from library.captioning.blip_choice import WordChoice
from library.captioning.blip_model import check_fit, load_config, load_form, load_network, load_tokenizer, text_config
from library.captioning.describer import Decoded
from library.core.errors import UserError
from library.core.log import get_logger
from library.core.randomness import NO_EPOCH, generator
from library.data.pictures.images import load_pixels
from library.options.captioning import BlipOptions

_LOG = get_logger(__name__)

_PURPOSE = "caption"
# BERT's words are joined with blanks, also around what was written without: "a man ' s t - shirt , red".
_BEFORE_MARK = re.compile(r"\s+([,.;:!?)])")
_IN_WORD = re.compile(r"(?<=\w) - (?=\w)")
_ENDINGS = re.compile(r"(?<=\w) ' (s|t|d|m|re|ve|ll)\b")


class BlipCaptioner:
    """A `Describer` that writes a sentence for each picture.

    A caption depends on the picture's content and file name (without its folder), the seed and the options; not on the
    batch or the run.

    Args:
        folder: the model, as `blip_files.check_folder` found it sound.
        options: how captions are worded.
        device: where the network computes. Always in float32: in half precision the scores of a word depend on the size
            of the batch so much that captions would, too.

    Raises:
        UserError: the model cannot be read, or cannot do what the options ask.
    """

    def __init__(self, folder: Path, options: BlipOptions, device: torch.device) -> None:
        self._options, self._device = options, device
        self._form, self._tokenizer, config = load_form(folder), load_tokenizer(folder), load_config(folder)
        check_fit(config, self._tokenizer, self._form, folder)
        prompt, words = _prompt_words(self._tokenizer, options), text_config(config)
        if options.max_length > words.max_position_embeddings:
            fix = "lower it"
            raise UserError.of(f"this BLIP writes {words.max_position_embeddings} tokens at most", "--max_length", fix)
        self._network = load_network(folder, device)
        self._is_search = options.beam_search and options.num_beams > 1
        self._end = int(words.sep_token_id or 0)
        self._start = torch.tensor([[words.bos_token_id, *prompt]], device=device)
        self._rules = _rules(options, self._tokenizer, words)
        self._decoder: Any = self._network.text_decoder
        self._decoder.generation_config = self._rules  # else the model's own fills in what ours leaves open
        if self._is_search and options.batch_size > 1:
            _LOG.warning("with --beam_search each picture is searched for alone; --batch_size changes nothing")

    def read(self, path: Path) -> Decoded:
        """The picture squeezed to BLIP's square without regard to its proportions, normalised: float32 (3, H, W).

        Raises:
            UserError: when the file is no readable picture; it is named.
        """
        size = self._form.size
        return self._form.of(load_pixels(path, size, (0, 0, size.width, size.height)))

    def describe(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> Sequence[str]:
        """A caption for each picture; see `Describer`."""
        if self._is_search:  # in which close calls are many and hidden, so that pictures are never put together
            captions, again = [""] * len(pictures), list(range(len(pictures)))
        else:
            captions, unsure = self._caption(pictures, paths)
            again = unsure if len(pictures) > 1 else []
        for row in again:
            (captions[row],), _ = self._caption(pictures[row : row + 1], paths[row : row + 1])
        return captions

    def why_empty(self) -> tuple[str, str]:
        """See `Describer`."""
        return "BLIP ended the caption before its first word", "raise --min_length, or try another --seed"

    def joined(self, old: str, new: str) -> str:
        """The caption behind what is there, once; see `Describer`."""
        return old if old == new or old.endswith(f", {new}") else f"{old.rstrip(' ,')}, {new}"

    @torch.inference_mode()
    def _caption(self, pictures: Sequence[Decoded], paths: Sequence[Path]) -> tuple[list[str], list[int]]:
        """Captions, and the rows whose caption may be another one when the picture is captioned alone."""
        options = self._options
        draws = [] if options.beam_search else [self._draws(*one) for one in zip(pictures, paths, strict=True)]
        choice = WordChoice(draws, options.top_p, self._end)
        values = torch.from_numpy(np.stack(pictures)).to(self._device)  # (B, 3, H, W)
        start = self._start.repeat(len(pictures), 1)
        with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
            seen = self._network.vision_model(pixel_values=values).last_hidden_state  # (B, places, width)
            written = self._decoder.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                encoder_hidden_states=seen,
                encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=self._device),
                generation_config=self._rules,
                logits_processor=LogitsProcessorList([] if self._is_search else [choice]),
            )
        new = written[:, start.shape[1] :].tolist()
        return [self._text(row) for row in new], choice.unsure

    def _draws(self, picture: Decoded, path: Path) -> np.random.Generator:
        """The generator of a picture.

        Copies under other names get captions of their own, and so do pictures of one name in different folders.
        """
        digest = hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=16).hexdigest()
        return generator(self._options.seed, NO_EPOCH, f"{path.name}\0{digest}", _PURPOSE)

    def _text(self, tokens: list[int]) -> str:
        words = tokens[: tokens.index(self._end)] if self._end in tokens else tokens
        text = str(self._tokenizer.decode(words, skip_special_tokens=True))
        return tidy(text.removeprefix("##"))  # stands before the end of a word, here the prompt's last


def tidy(text: str) -> str:
    """One line of BERT's words as one writes them: no blanks before a comma or within a word."""
    line = _BEFORE_MARK.sub(r"\1", " ".join(text.split()))
    return _IN_WORD.sub("-", _ENDINGS.sub(r"'\1", line))


def _prompt_words(tokenizer: BertTokenizer, options: BlipOptions) -> list[int]:
    """The prompt's tokens.

    Raises:
        UserError: the model does not know a word of it, or it leaves no room for a caption.
    """
    words: list[int] = tokenizer(options.prompt, add_special_tokens=False)["input_ids"]
    if set(words) & set(tokenizer.all_special_ids):
        raise UserError.of("holds characters that this model does not know", "--prompt", "use plain English words")
    if len(words) + 1 >= options.max_length:
        what = f"the prompt alone takes {len(words) + 1} tokens, and --max_length {options.max_length} leaves no room"
        raise UserError.of(what, "--prompt, --max_length", "raise --max_length, or shorten the prompt")
    return words


def _rules(options: BlipOptions, tokenizer: BertTokenizer, words: BlipTextConfig) -> GenerationConfig:
    """What transformers is asked for: never to draw (`WordChoice` does), and no marks among the words."""
    speakable = set(range(len(tokenizer))) - set(tokenizer.all_special_ids) | {words.sep_token_id}
    return GenerationConfig(
        do_sample=False,
        num_beams=options.num_beams if options.beam_search else 1,
        max_length=options.max_length,
        min_length=options.min_length,
        repetition_penalty=options.repetition_penalty,
        suppress_tokens=sorted(set(range(words.vocab_size)) - speakable),
        bos_token_id=words.bos_token_id,
        eos_token_id=words.sep_token_id,
        pad_token_id=words.pad_token_id,
    )

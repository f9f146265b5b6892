"""A tiny random BLIP in a folder, with transformers' own classes and a tokenizer of its own."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import BertTokenizer, BlipConfig, BlipForConditionalGeneration
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

SIZE = 32
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORDS = (
    "a picture of the with and in on at near under behind red blue green yellow white black small large old new bright "
    "cat dog horse bird tree flower house street bridge river lake hill mountain forest beach boat train bicycle table "
    "window door lamp book cup plate apple bread stone sand snow rain cloud sun moon shadow light garden field road "
    "station dark chair standing sitting lying running flying floating , ##s"
)
MARKS = ("[DEC]", "[ENC]")  # the model has rows for them, the tokenizer does not, as in the public files


def make_tiny_blip(folder: Path, seed: int = 0) -> Path:
    """Writes the model; its captions differ from picture to picture and hold a word at least.

    Args:
        folder: where; made if it is not there.
        seed: of the weights.
    """
    vocabulary = [*SPECIAL, *dict.fromkeys(WORDS.split())]
    tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(vocabulary)})
    model = BlipForConditionalGeneration(_config(len(vocabulary)))
    _fill(model, seed)
    end = SPECIAL.index("[SEP]")
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[end] = math.log(len(vocabulary) / 8)  # some eight words
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    BlipImageProcessorPil(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def _config(words: int) -> BlipConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BlipConfig(
        text_config={
            **sizes,
            "encoder_hidden_size": sizes["hidden_size"],
            "vocab_size": words + len(MARKS),
            "max_position_embeddings": 96,
            "bos_token_id": words,
            "pad_token_id": SPECIAL.index("[PAD]"),
            "sep_token_id": SPECIAL.index("[SEP]"),
            "eos_token_id": 2,
        },
        vision_config={**sizes, "image_size": SIZE, "patch_size": 8},
        projection_dim=32,
        image_text_hidden_size=32,
    )


def _fill(model: BlipForConditionalGeneration, seed: int) -> None:
    """Weights of a size at which pictures and words matter; the classes' own are next to nothing."""
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            is_scale = name.lower().endswith(("norm.weight", "norm1.weight", "norm2.weight"))
            strength = 0.8 if "word_embeddings" in name else 2.0  # lower, or words would call for themselves
            spread = 0.1 if is_scale or weight.ndim < 2 else strength / math.sqrt(weight[0].numel())
            weight.copy_(torch.randn(weight.shape, generator=draws) * spread + (1.0 if is_scale else 0.0))

"""The checks of a new word (Textual Inversion), and what is trained in the place of captions. No model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from library.core.errors import Problems, UserError
from library.core.wording import some_of
from library.data.description.config import DatasetConfig
from library.data.index.index import ImageIndex
from library.data.index.texts import TextsBuilder
from library.methods.embedding import StartVectors
from library.models.embedding_files import check_width, read_embedding
from library.models.identify import ModelIdentity
from library.options.embedding import EmbeddingOptions
from library.text.aliases import Alias
from library.text.templates import object_template, style_template

_NAMES_TOLD = 3


@dataclass(frozen=True)
class NewWord:
    """A new word that was found to be in order.

    Attributes:
        start: its vectors before training; `notes` tell about them.
    """

    alias: Alias
    start: StartVectors
    notes: tuple[str, ...]


def check_new_word(options: EmbeddingOptions, identity: ModelIdentity | None, problems: Problems) -> NewWord | None:
    """The word, and where its vectors start; None, with the mistakes gathered, where it cannot be used.

    Args:
        identity: the base model; None where it is not understood.
    """
    from library.text.tokenizer import CaptionTokenizer  # with transformers, which takes a second to import

    word, before = str(options.token_string), len(problems)
    tokenizer = CaptionTokenizer("sd1")  # both families have one vocabulary
    if len(tokenizer.text_ids(word)) < 2:
        what = f"CLIP knows {word!r} already, as a word of its own"
        problems.add(what, "--token_string", f"choose a word of several tokens, such as {word}-x or <{word}-x>")
    vectors = _read_vectors(options, identity, problems)
    ids = tuple(tokenizer.text_ids(options.init_word)) if options.init_word is not None else ()
    if options.init_word is not None and not ids:
        problems.add(f"CLIP reads nothing in {options.init_word!r}", "--init_word", "give a word")
    if len(problems) > before:
        return None
    count = options.num_vectors_per_token or (1 if vectors is None else len(vectors))
    start = StartVectors(count, vectors, ids)
    return NewWord(Alias(word, count), start, (_start_line(options, start),))


def _read_vectors(options: EmbeddingOptions, identity: ModelIdentity | None, problems: Problems) -> Tensor | None:
    if options.weights is None:
        return None
    path, asked = Path(options.weights), options.num_vectors_per_token
    try:
        vectors = read_embedding(path)
        if identity is not None:
            check_width(vectors, path, identity)
    except UserError as error:
        problems.extend(error.problems)
        return None
    if asked is not None and asked != len(vectors):
        what = f"{path} holds {len(vectors)} vectors, not {asked}"
        problems.add(what, "--weights, --num_vectors_per_token", "leave --num_vectors_per_token out")
    return vectors


def _start_line(options: EmbeddingOptions, start: StartVectors) -> str:
    many = "1 vector" if start.count == 1 else f"{start.count} vectors"
    line = f"new word: {options.token_string}, {many}"
    if options.weights is not None:
        return f"{line}, going on from {options.weights}"
    if options.init_word is None:
        return f"{line}, starting as an average word"
    line, known = f"{line}, starting as {options.init_word!r}", len(start.word_ids)
    if known > start.count:
        return f"{line}: the first {start.count} of its {known} tokens"
    if start.count > 1:
        tokens = "1 token is repeated" if known == 1 else f"{known} tokens are taken in turn"
        return f"{line}, whose {tokens}"
    return line


def check_word_in_captions(index: ImageIndex, alias: Alias, problems: Problems) -> list[str]:
    """Complains where no training picture has the new word in its caption; notes about those that lack it."""
    without: list[str] = []
    lacking, others, reg = 0, 0, 0
    for record in range(len(index)):
        changes = index.folders[int(index.subset[record])].caption_changes
        if any(alias.is_in(text) for text in (index.caption(record), changes.prefix, changes.suffix)):
            others += not index.is_reg[record]
        elif index.is_reg[record]:
            reg += 1
        else:
            lacking += 1
            if len(without) < _NAMES_TOLD:
                without.append(index.names[record])
    if not others:
        what = f"no training picture has {alias.word!r} in its caption, so it would learn nothing"
        fix = "write it into captions or class tokens as a word of its own, or give --use_object_template"
        problems.add(what, "--token_string", fix)
        return []
    notes = []
    if lacking:
        what = f"warning: {lacking} of {lacking + others} training pictures do not have {alias.word!r} in their caption"
        notes.append(f"{what} and teach it nothing: {some_of(without, lacking)}")
    if reg:
        what = f"note: {reg} regularisation pictures do not have {alias.word!r} in their caption"
        notes.append(f"{what}; they teach an embedding nothing and only take time")
    return notes


def template_of(options: EmbeddingOptions) -> str | None:
    """The sentences that are trained in the place of captions, as one text with wildcards; None for captions."""
    if options.use_object_template:
        return object_template(str(options.token_string))
    return style_template(str(options.token_string)) if options.use_style_template else None


def with_template(index: ImageIndex, template: str) -> ImageIndex:
    """The index with `template` as the caption of every training picture, its wildcards drawn at each use.

    Regularisation pictures keep their captions. What else happens to captions (prefix, dropout, …) goes on.
    """
    captions = TextsBuilder()
    for record in range(len(index)):
        captions.add(index.caption(record) if index.is_reg[record] else template)
    datasets = tuple(_with_wildcards(dataset) for dataset in index.datasets)
    return replace(index, captions=captions.build(), datasets=datasets)


def _with_wildcards(dataset: DatasetConfig) -> DatasetConfig:
    subsets = [
        subset if subset.is_reg else replace(subset, caption_changes=replace(subset.caption_changes, wildcard=True))
        for subset in dataset.subsets
    ]
    return replace(dataset, subsets=tuple(subsets))


def template_conflicts(datasets: Sequence[DatasetConfig], problems: Problems) -> None:
    """Complains about what a template cannot have: texts around captions in which a brace is a brace."""
    for subset in (subset for dataset in datasets for subset in dataset.subsets if not subset.is_reg):
        changes = subset.caption_changes
        if not changes.wildcard and ("{" in changes.prefix + changes.suffix):
            what = "its braces would become wildcards, since templates have some"
            problems.add(what, f"caption_prefix, caption_suffix ({subset.home})", "take the braces out")

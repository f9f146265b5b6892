"""The checks of a new word (Textual Inversion), and what is trained in the place of captions. No model is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

from torch import Tensor

from library.core.errors import Problems, UserError
from library.core.randomness import NO_EPOCH, generator
from library.core.wording import some_of
from library.data.captions.caption_changes import CaptionChanges, plain_caption, split_tags
from library.data.captions.caption_files import split_lines
from library.data.captions.wildcards import draw_wildcards
from library.data.description.config import DatasetConfig
from library.data.facts import is_always_empty
from library.data.index.index import ImageIndex
from library.data.index.texts import TextsBuilder
from library.methods.embedding import StartVectors
from library.models.embedding_files import LAYERS, check_width, read_embedding, read_layered_embedding
from library.models.identify import ModelIdentity
from library.options.embedding import EmbeddingOptions
from library.options.text import CHUNK_TOKENS, LONGEST, TextOptions
from library.text.aliases import Alias
from library.text.templates import object_template, style_template

_NAMES_TOLD = 3
_DRAWS = 16  # forms of a caption with wildcards that are tried
_MOST_TOKENISED = 10_000  # captions; half a second or so


@dataclass(frozen=True)
class NewWord:
    """A new word that was found to be in order.

    Attributes:
        start: its vectors before training; `notes` tell about them.
        template: the sentences that are trained in the place of captions, see `template_of`.
    """

    alias: Alias
    start: StartVectors
    notes: tuple[str, ...]
    template: str | None = None

    @property
    def layered(self) -> bool:
        """Whether each cross-attention layer of the U-Net has vectors of its own (XTI)."""
        return self.start.layers > 1


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
    layers = len(LAYERS) if options.xti else 1
    count = options.num_vectors_per_token or (1 if vectors is None else len(vectors) // layers)
    start = StartVectors(count, vectors, ids, layers)
    return NewWord(Alias(word, count), start, (_start_line(options, start),), template_of(options))


def _read_vectors(options: EmbeddingOptions, identity: ModelIdentity | None, problems: Problems) -> Tensor | None:
    if options.weights is None:
        return None
    path, asked = Path(options.weights), options.num_vectors_per_token
    try:
        vectors = read_layered_embedding(path) if options.xti else read_embedding(path)
        if identity is not None:
            check_width(vectors, path, identity)
    except UserError as error:
        problems.extend(error.problems)
        return None
    held = len(vectors) // len(LAYERS) if options.xti else len(vectors)
    if asked is not None and asked != held:
        what = f"{path} holds {held} vectors, not {asked}"
        problems.add(what, "--weights, --num_vectors_per_token", "leave --num_vectors_per_token out")
    return vectors


def _start_line(options: EmbeddingOptions, start: StartVectors) -> str:
    many = "1 vector" if start.count == 1 else f"{start.count} vectors"
    line = f"new word: {options.token_string}, {many}{f' for each of {len(LAYERS)} layers' if options.xti else ''}"
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
    """Complains about what a template cannot have: changes of tags, and texts around it in which a brace is a brace."""
    places: dict[str, list[str]] = {}
    for subset in (subset for dataset in datasets for subset in dataset.subsets if not subset.is_reg):
        changes = subset.caption_changes
        if not changes.wildcard and ("{" in changes.prefix + changes.suffix):
            what = "its braces would become wildcards, since templates have some"
            problems.add(what, f"caption_prefix, caption_suffix ({subset.home})", "take the braces out")
        for name in _changes_of_tags(changes):
            places.setdefault(name, []).append(str(subset.home))
    for name, homes in places.items():
        told = some_of(homes[:_NAMES_TOLD], len(homes))
        what = "the sentences of a template have no tags that could be kept, moved or left out"
        problems.add(what, f"{name} ({told})", "switch it off, or leave the template out")


def _changes_of_tags(changes: CaptionChanges) -> list[str]:
    """The options that are on and work on the tags of a caption."""
    asked = {
        "shuffle_caption": changes.shuffle,
        "caption_tag_dropout_rate": changes.tag_dropout_rate > 0,
        "token_warmup_step": changes.warmup_step > 0,
        "keep_tokens": changes.keep_tokens > 0,
        "keep_tokens_separator": changes.keep_tokens_separator is not None,
        "secondary_separator": changes.secondary_separator is not None,
    }
    return [name for name, is_on in asked.items() if is_on]


class _Place(Enum):
    """What a picture's caption does with the word."""

    READ = "read"
    CUT = "cut"  # the word, or some of its vectors, is behind the end of what is read
    EMPTY = "empty"  # no use has a caption
    LACKING = "lacking"


@dataclass
class _Pictures:
    """How many there are, and the names of the first."""

    count: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, index: ImageIndex, record: int) -> None:
        self.count += 1
        if len(self.names) < _NAMES_TOLD:
            self.names.append(index.names[record])

    def __str__(self) -> str:
        return some_of(self.names, self.count)


def check_word_in_captions(
    index: ImageIndex,
    alias: Alias,
    problems: Problems,
    options: TextOptions = TextOptions(),  # noqa: B008  # frozen
) -> list[str]:
    """Complains where no training picture has the new word in what is read of its caption; notes about those without.

    A caption has the word where its tokens hold the whole of it in some order that is trained, within
    `--max_token_length`.
    """
    search = _Search(alias, options)
    own, reg = {place: _Pictures() for place in _Place}, {place: _Pictures() for place in _Place}
    rows = zip(index.subset.tolist(), index.is_reg.tolist(), index.captions, strict=True)
    for record, (number, is_reg, caption) in enumerate(rows):
        if index.folders[number].is_validation:
            continue
        place = search.place_in(caption, index.folders[number].caption_changes)
        (reg if is_reg else own)[place].add(index, record)
        if search.tokenised > _MOST_TOKENISED and own[_Place.READ].count:
            search.gives_up = True
    if not own[_Place.READ].count:
        _complain(own, alias, options, problems)
        return []
    return list(_notes(own, reg, alias, options, search.gives_up))


def _complain(own: dict[_Place, _Pictures], alias: Alias, options: TextOptions, problems: Problems) -> None:
    if own[_Place.CUT].count:
        if any(problem.where == "--num_vectors_per_token" for problem in problems):
            return  # it was told that so many fit into no caption
        vectors = "" if alias.count == 1 else f" with its {alias.count} vectors"
        what = (
            f"{alias.word!r}{vectors} stands behind the {options.max_token_length} tokens that are read of a caption,"
            f" wherever a training picture has it, so it would learn nothing"
        )
        fewer = "" if alias.count == 1 else ", give fewer vectors"
        problems.add(what, "--token_string", f"put the word first{fewer}{_longer(options)}")
    elif own[_Place.EMPTY].count:
        what = f"the captions of the training pictures are always empty, so {alias.word!r} would learn nothing"
        problems.add(what, "caption_dropout_rate, caption_dropout_every_n_epochs", "lower the rate")
    else:
        what = f"no training picture has {alias.word!r} in its caption, so it would learn nothing"
        fix = "write it into captions or class tokens as a word of its own, or give --use_object_template"
        problems.add(what, "--token_string", fix)


def _notes(
    own: dict[_Place, _Pictures], reg: dict[_Place, _Pictures], alias: Alias, options: TextOptions, gave_up: bool
) -> Iterator[str]:
    total = sum(pictures.count for pictures in own.values())
    lacking, cut, empty = own[_Place.LACKING], own[_Place.CUT], own[_Place.EMPTY]
    if lacking.count:
        what = f"warning: {lacking.count} of {total} training pictures do not have {alias.word!r} in their caption"
        yield f"{what} and teach it nothing: {lacking}"
    if cut.count:
        at_least = "at least " if gave_up else ""
        what = f"warning: {at_least}{cut.count} of {total} training pictures have {alias.word!r} in their caption, but"
        what = f"{what} not whole within the {options.max_token_length} tokens that are read: {cut}"
        yield f"{what}; put the word first{_longer(options)}"
    if empty.count:
        what = f"warning: {empty.count} of {total} training pictures have an empty caption at every use"
        yield f"{what} and teach {alias.word!r} nothing: {empty}"
    without = sum(pictures.count for place, pictures in reg.items() if place is not _Place.READ)
    if without:
        what = f"note: {without} regularisation pictures do not have {alias.word!r} in their caption"
        yield f"{what}; they teach an embedding nothing and only take time"


def _longer(options: TextOptions) -> str:
    if options.no_token_padding or options.max_token_length >= LONGEST:
        return ""
    return f", or give --max_token_length {options.max_token_length + CHUNK_TOKENS}"


class _Search:
    """Looks for the word in captions; `tokenised` counts those that had to be taken apart."""

    def __init__(self, alias: Alias, options: TextOptions) -> None:
        from library.text.tokenizer import CaptionTokenizer  # with transformers, which takes a second to import

        self._alias = alias
        self._tokenizer = CaptionTokenizer("sd1", options, alias)  # both families have one vocabulary
        self._known: dict[tuple[str, CaptionChanges], bool] = {}
        self.tokenised = 0
        self.gives_up = False

    def place_in(self, caption: str, changes: CaptionChanges) -> _Place:
        if not any(self._alias.is_in(text) for text in (caption, changes.prefix, changes.suffix) if text):
            return _Place.LACKING
        if is_always_empty(changes):
            return _Place.EMPTY
        lines = [line for line in split_lines(caption) if line.strip()] if changes.wildcard else [caption]
        texts = [plain_caption(line, changes) for line in lines or [""]]
        texts = [text for text in texts if self._alias.is_in(text)]
        if not texts:
            return _Place.LACKING
        return _Place.READ if any(self._is_read(text, changes) for text in texts) else _Place.CUT

    def _is_read(self, text: str, changes: CaptionChanges) -> bool:
        before = self._alias.split(text)[0]
        # a token is a byte or more, so the few captions that are long before the word are all that must be tokenised
        if len(before.lower().encode("utf-8", "replace")) + self._alias.count <= CHUNK_TOKENS or self.gives_up:
            return True
        key = (text, changes)
        if key not in self._known:
            self._known[key] = any(self._fits(form) for form in _forms(text, changes, self._alias))
        return self._known[key]

    def _fits(self, text: str) -> bool:
        self.tokenised += 1
        ids, _ = self._tokenizer([text])
        return int(ids.max()) == self._alias.ids[-1]


def _forms(text: str, changes: CaptionChanges, alias: Alias) -> Iterator[str]:
    """Forms of a caption that are trained, in which the word may come sooner than where it is written."""
    yield text
    texts = [text]
    if changes.wildcard and "{" in text:
        texts = [draw_wildcards(text, generator(0, NO_EPOCH, f"{number}", "word")) for number in range(_DRAWS)]
        yield from texts
    if changes.shuffle or changes.tag_dropout_rate > 0:
        yield from (_word_first(drawn, changes, alias) for drawn in texts)


def _word_first(text: str, changes: CaptionChanges, alias: Alias) -> str:
    """The caption with the tag of the word behind those that are kept, as shuffling and dropout can have it."""
    tags = split_tags(text, changes.separator)
    kept, movable = tags[: changes.keep_tokens], tags[changes.keep_tokens :]
    return f"{changes.separator} ".join([*kept, *sorted(movable, key=lambda tag: not alias.is_in(tag))])

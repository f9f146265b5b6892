"""The tags that options name, and options that do not go together: found before a picture is read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from library.captioning.tag_list import Category, TagList
from library.core.errors import Problems, nearest_name, printable
from library.core.log import get_logger
from library.core.wording import some_of
from library.options.captioning import FolderOptions, TaggerOptions

_LOG = get_logger(__name__)
_TOLD = 5
_UNDESIRED, _FIRST, _REPLACEMENT = "--undesired_tags", "--always_first_tags", "--tag_replacement"
_AT_COMMA, _AT_SEMICOLON = re.compile(r"(?<!\\),"), re.compile(r"(?<!\\);")
_PAIR_FORM = r"write a,b for each pair and ; between pairs (a,b;c,d); \, and \; stand for a comma and a semicolon"


def check_tagger_options(options: TaggerOptions, folders: FolderOptions) -> None:
    """What can be said of the options without a model.

    Raises:
        UserError: with everything that is malformed or contradicts itself.
    """
    problems = Problems()
    if options.use_rating_tags and options.use_rating_tags_as_last_tag:
        where = "--use_rating_tags, --use_rating_tags_as_last_tag"
        problems.add("the rating can stand in one place only", where, "keep one of them")
    if options.append_tags and folders.overwrite:
        what = "one adds to the texts that are there, the other writes them anew"
        problems.add(what, "--append_tags, --overwrite", "keep one of them")
    if not options.caption_separator or re.search(r"[\x00-\x1f\x7f-\x9f]", options.caption_separator):
        what = f"tags must be told apart in one line, got {options.caption_separator!r}"
        problems.add(what, "--caption_separator", "use a comma and a blank, which training expects")
    for flag, text in ((_UNDESIRED, options.undesired_tags), (_FIRST, options.always_first_tags)):
        if text and not split_names(text):
            problems.add("it names no tag", flag, "separate tags by commas, or leave it out")
    pairs = problems.attempt(lambda: split_replacements(options.tag_replacement)) or {}
    problems.extend(_contradictions(options, pairs))
    problems.raise_if_any()


def check_names(options: TaggerOptions, tags: TagList) -> None:
    """What can be said of the options with the list of the model's tags.

    Of what is never written, or comes first where it is found, people keep one list for all taggers: the log names what
    this one does not know.

    Raises:
        UserError: with every tag to be replaced that the model does not know, and options that need a kind of tag it
            does not have.
    """
    problems = Problems()
    pairs = split_replacements(options.tag_replacement)
    known = dict(zip(map(key_of, tags.names), tags.names, strict=True))
    written = {key_of(new): new for new in pairs.values()}
    _report_unknown(pairs, known, _REPLACEMENT, problems)
    for flag, text in ((_UNDESIRED, options.undesired_tags), (_FIRST, options.always_first_tags)):
        _tell_unknown(split_names(text), {**written, **known}, flag)
    needed = (
        (options.use_rating_tags, "--use_rating_tags", Category.RATING, "no ratings"),
        (options.use_rating_tags_as_last_tag, "--use_rating_tags_as_last_tag", Category.RATING, "no ratings"),
        (options.character_tags_first, "--character_tags_first", Category.CHARACTER, "no names of characters"),
        (
            options.character_threshold is not None,
            "--character_threshold",
            Category.CHARACTER,
            "no names of characters",
        ),
    )
    for is_asked, flag, category, lacking in needed:
        if is_asked and not tags.of(category):
            problems.add(f"this tagger has {lacking}", flag, "leave it out, or take another tagger")
    problems.raise_if_any()


def key_of(name: str) -> str:
    """What names of one tag have in common: blanks and underscores are alike."""
    return name.strip().replace(" ", "_")


def split_names(text: str) -> list[str]:
    r"""Tags that are separated by commas; `\,` is a comma within one."""
    return [_plain(part) for part in _AT_COMMA.split(text) if part.strip()]


def split_replacements(text: str) -> dict[str, str]:
    r"""Pairs of tags as `a,b;c,d`: what is written for each, by the tag's `key_of`.

    Raises:
        UserError: with every pair that is none, and tags that would become two others.
    """
    problems, found = Problems(), dict[str, str]()
    for pair in _AT_SEMICOLON.split(text):
        names = [_plain(part) for part in _AT_COMMA.split(pair)]
        if not pair.strip():
            continue
        if len(names) != 2 or not all(names):
            problems.add(f"{pair.strip()!r} is no pair of tags", _REPLACEMENT, _PAIR_FORM)
        elif found.get(key_of(names[0]), names[1]) != names[1]:
            problems.add(f"{names[0]} would become two tags", _REPLACEMENT, "keep one of its pairs")
        elif re.search(r"[\x00-\x1f\x7f-\x9f]", names[1]):
            problems.add(f"{names[1]!r} would break the line", _REPLACEMENT, "take out its control characters")
        else:
            found[key_of(names[0])] = names[1]
    if text and not found and not problems:
        problems.add("it names no pair of tags", _REPLACEMENT, _PAIR_FORM)
    problems.raise_if_any()
    return found


def _plain(part: str) -> str:
    return part.replace("\\,", ",").replace("\\;", ";").strip()


def _contradictions(options: TaggerOptions, pairs: Mapping[str, str]) -> Problems:
    problems = Problems()
    undesired = {key_of(name): name for name in split_names(options.undesired_tags)}
    for name in split_names(options.always_first_tags):
        if key_of(name) in undesired:
            problems.add(f"{name} stands in both", f"{_UNDESIRED}, {_FIRST}", "keep it in one of them")
    for key in pairs:
        if key in undesired:
            problems.add(f"{undesired[key]} stands in both", f"{_UNDESIRED}, {_REPLACEMENT}", "keep it in one of them")
    return problems


def _tell_unknown(names: Sequence[str], known: Mapping[str, str], flag: str) -> None:
    unknown = list(_unknown(names, known))
    nearest = {name: nearest_name(key_of(name), known) for name in unknown[:_TOLD]}
    told = [f"{name} (did you mean {known[near]}?)" if near else name for name, near in nearest.items()]
    if told:
        _LOG.warning("%s", printable(f"{flag}: this tagger has no tag {some_of(told, len(unknown))}"))


def _report_unknown(names: Mapping[str, str], known: Mapping[str, str], flag: str, problems: Problems) -> None:
    for name in _unknown(names, known):
        nearest = nearest_name(key_of(name), known)
        fix = f"did you mean {known[nearest]}?" if nearest else "the tags it knows stand in its list, beside the model"
        problems.add(f"the tagger knows no tag {name!r}", flag, fix)


def _unknown(names: Sequence[str] | Mapping[str, str], known: Mapping[str, str]) -> Iterator[str]:
    return (name for name in dict.fromkeys(names) if key_of(name) not in known)

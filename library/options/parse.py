"""From the command line and `--config_file` to checked option dataclasses, with every problem told at once."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterable, Sequence
from dataclasses import Field, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from library.core.errors import Problems, UserError, suggest_name
from library.core.toml_files import TomlFile, read_toml
from library.options.base import (
    OptionGroup,
    convert,
    default_of,
    info_of,
    option_fields,
    text_to_value,
    value_type,
)
from library.options.config import ConfigOptions

# what people look for on the command line and is said elsewhere
_FILE_KEYS = {
    "--batch_size": "on the command line it is --train_batch_size",
    "--num_repeats": "write it as the number in the folder's name (10_shs dog), or in a --dataset_config file",
    "--class_tokens": "write them as the folder's name (10_shs dog), or in a --dataset_config file",
    "--image_dir": "on the command line it is --train_data_dir",
    "--is_reg": "on the command line it is --reg_data_dir",
    "--metadata_file": "on the command line it is --in_json",
}
# the same of --debug, by what a script has in its place; the last is of those that have nothing
_INSTEAD_OF_DEBUG = {
    "--debug_dataset": "--debug_dataset shows what would be trained on, and trains nothing",
    "--dry_run": "--dry_run shows every change and writes nothing",
    "": "leave it out: the log tells what was done and with which pictures something is wrong",
}
GroupT = TypeVar("GroupT", bound=OptionGroup)


@dataclass(frozen=True)
class OptionValues:
    """The checked options of one script, one instance a group."""

    groups: tuple[OptionGroup, ...]
    given: frozenset[str]

    def of(self, group: type[GroupT]) -> GroupT:
        """The instance of one option dataclass."""
        for instance in self.groups:
            if isinstance(instance, group):
                return instance
        raise KeyError(group.__name__)

    def has(self, group: type[OptionGroup]) -> bool:
        """Whether the script understands the options of a group."""
        return any(isinstance(instance, group) for instance in self.groups)


class _Parser(argparse.ArgumentParser):
    """argparse that raises instead of leaving the program."""

    def error(self, message: str) -> NoReturn:
        raise UserError.of(message, "command line", f"see python {self.prog} --help")


def parse_options(
    script: str, description: str, groups: Sequence[type[OptionGroup]], argv: Sequence[str]
) -> OptionValues:
    """Reads all options of a script.

    Args:
        script: the script's file name, for `--help` and messages.
        description: the sentence at the top of `--help`.
        groups: the option dataclasses the script understands; `ConfigOptions` is added.
        argv: the words of the command line without the program's name.

    Raises:
        UserError: with every unknown flag or key, wrong type, value out of range and missing option.
    """
    all_groups = (*groups, ConfigOptions)
    known = {item.name: (group, item) for group in all_groups for item in option_fields(group)}
    problems = Problems()
    _report_two_names(known, argv, problems)
    texts, unknown = _split_command_line(script, description, all_groups, argv)
    unknown = _take_positionals(texts, unknown, known)
    _report_unknown_words(unknown, known, problems)
    values = _convert_texts(texts, known, problems)
    from_file = _read_config_file(values, known, problems)
    merged = {**from_file, **values}
    _report_missing(merged, known, problems, are_words_lost=bool(unknown))
    problems.raise_if_any()
    built = tuple(
        group(**{item.name: merged.get(item.name, default_of(item)) for item in option_fields(group)})
        for group in all_groups
    )
    return OptionValues(built, frozenset(merged))


def _split_command_line(
    script: str, description: str, groups: Sequence[type[OptionGroup]], argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """The raw words given for each known flag, and the words that belong to none."""
    flags = [item for group in groups for item in option_fields(group) if not info_of(item).positional]
    positionals = sum(len(option_fields(group)) for group in groups) > len(flags)
    if positionals and not {"-h", "--help"}.isdisjoint(argv):
        build_parser(script, description, groups).parse_args(["--help"])
    parser = build_parser(script, description, groups, with_positionals=False)
    namespace, unknown = parser.parse_known_args(_with_closed_switches(argv, groups) if positionals else list(argv))
    return vars(namespace), unknown


def _with_closed_switches(argv: Sequence[str], groups: Sequence[type[OptionGroup]]) -> list[str]:
    """The words with each switch as --name=true or --name=false: the word behind it may be a folder."""
    switches = {
        f"--{name}"
        for group in groups
        for item in option_fields(group)
        for name in names_of(item)
        if value_type(group, item.name) is bool
    }
    closed: list[str] = []
    for word in argv:
        if closed and closed[-1] in switches and word.lower() in ("true", "false"):
            closed[-1] = f"{closed[-1]}={word}"
        else:
            closed.append(word)
    return [f"{word}=true" if word in switches else word for word in closed]


def build_parser(
    script: str, description: str, groups: Sequence[type[OptionGroup]], with_positionals: bool = True
) -> argparse.ArgumentParser:
    """The argparse parser of a script; it only splits words, values are converted by `convert`."""
    parser = _Parser(prog=script, description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    for group in groups:
        section = parser.add_argument_group(group.title)
        for item in option_fields(group):
            flags = [f"--{name}" for name in names_of(item)]
            if not info_of(item).positional:
                section.add_argument(*flags, dest=item.name, **_argument_settings(group, item))
            elif with_positionals:
                count = "+" if default_of(item) == () else None
                section.add_argument(item.name, metavar=info_of(item).metavar, help=info_of(item).help, nargs=count)
    return parser


def _take_positionals(texts: dict[str, Any], words: list[str], known: dict[str, Any]) -> list[str]:
    """Moves the words without a flag to the positional options, the last words to the last ones; returns the others.

    Where an unknown flag stands among them, it may own the words behind it, so only those in front of it are taken.
    """
    wanted = [item for _, item in known.values() if info_of(item).positional]
    if not wanted:
        return words
    count = next((number for number, word in enumerate(words) if word.startswith("-") and word != "-"), len(words))
    found, rest = words[:count], words[count:]
    if default_of(wanted[0]) != ():  # as many words as options
        texts.update(zip((item.name for item in wanted), found, strict=False))
        return [*found[len(wanted) :], *rest]
    singles = wanted[1:][-max(0, len(found) - 1) :] if len(found) > 1 else []
    several = found[: len(found) - len(singles)]
    texts.update(zip((item.name for item in singles), found[len(several) :], strict=True))
    if several:
        texts[wanted[0].name] = several
    return rest


def names_of(item: Field[Any]) -> tuple[str, ...]:
    """The name of an option, and the other names under which guides know it."""
    return (item.name, *info_of(item).aliases)


def _report_two_names(known: dict[str, Any], argv: Sequence[str], problems: Problems) -> None:
    flags = {word.split("=", 1)[0].removeprefix("--") for word in argv if word.startswith("--")}
    for _, item in known.values():
        used = [name for name in names_of(item) if name in flags]
        if len(used) > 1:
            problems.add("they are one option", ", ".join(f"--{name}" for name in used), "keep one of them")


def _argument_settings(group: type[OptionGroup], item: Field[Any]) -> dict[str, Any]:
    kind, info = value_type(group, item.name), info_of(item)
    settings: dict[str, Any] = {"help": help_text(item).replace("%", "%%")}
    if kind is bool:
        return {**settings, "nargs": "?", "const": "true", "metavar": "true|false"}
    if kind == tuple[str, ...]:
        settings |= {"nargs": "*", "action": "extend"}
    settings["metavar"] = "|".join(info.choices) if info.choices else info.metavar
    return settings


def help_text(item: Field[Any]) -> str:
    """The help of an option with what is true when it is not given."""
    info, default = info_of(item), default_of(item)
    if info.required:
        return f"{info.help} (required)"
    if default is None or default is False or default == () or "default:" in info.help:
        return info.help
    return f"{info.help} (default: {default})"


def _report_unknown_words(unknown: Iterable[str], known: dict[str, Any], problems: Problems) -> None:
    flags = [f"--{name}" for _, item in known.values() for name in names_of(item)]
    expected = " ".join(str(info_of(item).metavar) for _, item in known.values() if info_of(item).positional)
    after_unknown_flag = False
    for word in unknown:
        is_flag = word.startswith("-") and not _is_number(word)
        if is_flag:
            flag = word.split("=", 1)[0]
            problems.add(f"{flag} is not an option", "command line", _instead_of(flag, flags))
        elif not after_unknown_flag:
            fix = f"{expected} are expected, in this order and no more words; " if expected else ""
            fix += "put quotes around values with spaces, or remove it"
            problems.add(f"{word!r} belongs to no option", "command line", fix)
        after_unknown_flag = is_flag or after_unknown_flag


def _instead_of(flag: str, flags: Sequence[str]) -> str:
    """What to give instead of an unknown flag."""
    if flag == "--debug":
        return next(fix for name, fix in _INSTEAD_OF_DEBUG.items() if not name or name in flags)
    return _FILE_KEYS.get(flag) or suggest_name(flag, flags, "see --help for all options")


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _convert_texts(texts: dict[str, Any], known: dict[str, Any], problems: Problems) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, raw in texts.items():
        group, _ = known[name]
        kind = value_type(group, name)
        value = raw if isinstance(raw, list) else text_to_value(raw, kind)
        _take_value(name, value, f"--{name}", known, values, problems)
    return values


def _take_value(
    name: str, value: Any, where: str, known: dict[str, Any], values: dict[str, Any], problems: Problems
) -> None:
    """Converts and checks one value; keeps it in `values` or adds the complaint to `problems`."""
    group, item = known[name]
    info = info_of(item)
    try:
        converted = convert(value, value_type(group, name))
    except ValueError as error:
        problems.add(str(error), where, f"it means: {info.help}")
        return
    if info.choices:
        matching = [choice for choice in info.choices if choice.lower() == converted.lower()]
        if not matching:
            fix = suggest_name(converted, info.choices, f"use one of: {', '.join(info.choices)}")
            problems.add(f"{converted!r} is not available", where, fix)
            return
        converted = matching[0]
    complaint = info.check(converted) if info.check else None
    if complaint:
        problems.add(complaint, where, f"it means: {info.help}")
        return
    values[name] = converted


def _read_config_file(values: dict[str, Any], known: dict[str, Any], problems: Problems) -> dict[str, Any]:
    named = values.get("config_file")
    if named is None or values.get("output_config"):
        return {}
    path = config_path(named)
    try:
        file = read_toml(path, "--config_file")
    except UserError as error:
        problems.extend(error.problems)
        return {}
    found: dict[str, Any] = {}
    _take_table(file, (), known, found, problems)
    return found


def config_path(named: str) -> Path:
    """The file `--config_file` means; the ending .toml may be left out."""
    path = Path(named)
    return path if path.suffix else path.with_suffix(".toml")


def _take_table(
    file: TomlFile, names: tuple[str, ...], known: dict[str, Any], found: dict[str, Any], problems: Problems
) -> None:
    table: dict[str, Any] = functools.reduce(lambda above, name: above[name], names, file.content)
    own_names = {alias: name for name, (_, item) in known.items() for alias in info_of(item).aliases}
    for written, value in table.items():
        place, key = file.where((*names, written)), own_names.get(written, written)
        if isinstance(value, dict) and key not in known:
            _take_table(file, (*names, written), known, found, problems)
        elif key not in known or key in ("config_file", "output_config"):
            fix = suggest_name(key, known, "see --help for all options")
            problems.add(f"{key} is not an option", place, fix)
        elif key in found:
            problems.add(f"{key} stands twice", place, "keep one of them")
        else:
            _take_value(key, value, place, known, found, problems)


def _report_missing(
    merged: dict[str, Any], known: dict[str, Any], problems: Problems, are_words_lost: bool = False
) -> None:
    """`are_words_lost`: an unknown flag stands on the command line, which may own words that are missed here."""
    if merged.get("output_config"):
        if "config_file" not in merged:
            problems.add("--output_config needs a file to write", "command line", "name it with --config_file FILE")
        return
    for name, (_, item) in known.items():
        info = info_of(item)
        is_lost = info.positional and are_words_lost
        if info.required and name not in merged and not is_lost and not any(name in p.where for p in problems):
            shown = info.metavar if info.positional else f"--{name}"
            problems.add(f"{shown} is missing", "command line", f"give the {info.help}")

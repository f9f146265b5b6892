"""What rules do with the tags of an entry. Each action is built once and takes the tags of one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from library.preparation.patterns import REMEMBERED, Patterns, outside_placeholders, tag_key, tag_test, tags_in

Change = Callable[[list[str]], tuple[list[str], int]]

JOINT = ", "
_LONGEST_TAG = 8  # words; what has more is a sentence, which covers no tag


@dataclass(frozen=True)
class TagAction:
    """What becomes of the tags of a line.

    Attributes:
        change: the new tags, and how many of the old ones were changed or removed; 0 means that all are as before.
        concerns: whether a tag can be why a line changes; where no tag of a line is, `change` need not look at it.
    """

    change: Change
    concerns: Callable[[str], bool]


def tidy() -> TagAction:
    """One blank where there are several."""
    return _each_tag(lambda tag: " ".join(tag.split()))


def lower_case(exceptions: Sequence[str]) -> TagAction:
    """Small letters, but within < and >."""
    leaves = tag_test(exceptions)
    return _each_tag(lambda tag: tag if leaves(tag) else outside_placeholders(tag, str.lower))


def underscores_to_blanks(exceptions: Sequence[str]) -> TagAction:
    """Blanks for underscores, but within < and >, and in faces such as ^_^, which the exceptions list."""
    leaves = tag_test(exceptions)

    def with_blanks(tag: str) -> str:
        if "_" not in tag or leaves(tag):
            return tag
        new = outside_placeholders(tag, lambda text: text.replace("_", " "))
        return (" ".join(new.split()) or tag) if new != tag else tag

    return _each_tag(with_blanks)


def replace(names: Mapping[str, str], exceptions: Sequence[str]) -> TagAction:
    """Other names for whole tags; a name with a comma stands for several tags."""
    leaves = tag_test(exceptions)
    by_key = {tag_key(old): tags_in(new) for old, new in names.items()}

    def concerns(tag: str) -> bool:
        return by_key.get(tag_key(tag), [tag]) != [tag] and not leaves(tag)

    def change(tags: list[str]) -> tuple[list[str], int]:
        found = [by_key[tag_key(tag)] if concerns(tag) else [tag] for tag in tags]
        return [tag for new in found for tag in new], sum(concerns(tag) for tag in tags)

    return TagAction(change, concerns)


def remove(patterns: Sequence[str], exceptions: Sequence[str]) -> TagAction:
    """Takes out tags that fit a pattern."""
    fits = tag_test(patterns, exceptions)
    return TagAction(lambda tags: _without(tags, fits), fits)


def remove_if_several(families: Sequence[Sequence[str | Sequence[str]]], exceptions: Sequence[str]) -> TagAction:
    """Takes out all tags of a family that says more than one thing: of several persons nobody knows who has which.

    Args:
        families: patterns. Each tag says a thing of its own, but those of an inner list say one: "long hair" and "very
            long hair". A tag belongs to the first family that it fits.
        exceptions: patterns of tags that belong to none.
    """
    tests = [tag_test(_all_patterns(family), exceptions) for family in families]
    lists = [[Patterns(item) for item in family if not isinstance(item, str)] for family in families]

    @lru_cache(maxsize=REMEMBERED)
    def said_by(tag: str) -> tuple[int, int | str] | None:
        """The family of a tag, and what it says: the number of an inner list, or itself."""
        family = next((number for number, fits in enumerate(tests) if fits(tag)), None)
        if family is None:
            return None
        key = tag_key(tag)
        return family, next((number for number, names in enumerate(lists[family]) if names.fit(key)), key)

    def change(tags: list[str]) -> tuple[list[str], int]:
        things = {thing for thing in map(said_by, tags) if thing is not None}
        counts = Counter(family for family, _ in things)
        return _without(tags, lambda tag: (thing := said_by(tag)) is not None and counts[thing[0]] > 1)

    return TagAction(change, lambda tag: said_by(tag) is not None)


def remove_covered(exceptions: Sequence[str]) -> TagAction:
    """Takes out a tag that another one ends with: `shirt` beside `white shirt`."""
    leaves = tag_test(exceptions)

    def change(tags: list[str]) -> tuple[list[str], int]:
        endings: set[str] = set().union(*map(_endings, tags))
        covered = {tag for tag in tags if tag_key(tag) in endings and not leaves(tag)}
        return _without(tags, covered.__contains__) if covered else (tags, 0)

    return TagAction(change, lambda tag: bool(_endings(tag)))


def deduplicate(exceptions: Sequence[str]) -> TagAction:
    """Each tag once, where it stands first."""
    leaves = tag_test(exceptions)

    def change(tags: list[str]) -> tuple[list[str], int]:
        keys = [tag_key(tag) for tag in tags]
        if len(set(keys)) == len(keys):
            return tags, 0
        first = {key: number for number, key in reversed(list(enumerate(keys)))}
        kept = [tag for number, tag in enumerate(tags) if first[keys[number]] == number or leaves(tag)]
        return kept, len(tags) - len(kept)

    return TagAction(change, lambda tag: True)


def only_when(action: TagAction, conditions: Iterable[Sequence[str]]) -> TagAction:
    """The action, where the line meets one of the conditions: for each pattern of it there is a tag.

    Args:
        action: what is done then.
        conditions: one or several patterns each.
    """
    conditions = list(conditions)
    alone = tag_test(pattern for patterns in conditions if len(patterns) == 1 for pattern in patterns)
    together = [[tag_test([pattern]) for pattern in patterns] for patterns in conditions if len(patterns) > 1]

    def is_met(tags: list[str]) -> bool:
        if any(alone(tag) for tag in tags):
            return True
        return any(all(any(fits(tag) for tag in tags) for fits in patterns) for patterns in together)

    return TagAction(lambda tags: action.change(tags) if is_met(tags) else (tags, 0), action.concerns)


def _each_tag(change_one: Callable[[str], str]) -> TagAction:
    """An action that looks at one tag at a time."""
    change_one = lru_cache(maxsize=REMEMBERED)(change_one)

    def change(tags: list[str]) -> tuple[list[str], int]:
        new = [change_one(tag) for tag in tags]
        return new, sum(a != b for a, b in zip(tags, new, strict=True))

    return TagAction(change, lambda tag: change_one(tag) != tag)


def _all_patterns(family: Sequence[str | Sequence[str]]) -> list[str]:
    return [pattern for item in family for pattern in ([item] if isinstance(item, str) else item)]


def _without(tags: list[str], fits: Callable[[str], bool]) -> tuple[list[str], int]:
    kept = [tag for tag in tags if not fits(tag)]
    return kept, len(tags) - len(kept)


@lru_cache(maxsize=REMEMBERED)
def _endings(tag: str) -> tuple[str, ...]:
    """The last words of a tag, without the tag itself."""
    words = tag_key(tag).split(" ", _LONGEST_TAG)
    if len(words) > _LONGEST_TAG:
        return ()
    return tuple(" ".join(words[start:]) for start in range(1, len(words)))

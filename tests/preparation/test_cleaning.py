"""Cleaning by the rules that are shipped, on texts as taggers and BLIP write them; and what the actions promise."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from library.preparation.cleaning import Cleaner, Tally
from library.preparation.patterns import tag_key
from library.preparation.rules import Rules, read_rules
from tests.training.runs import ROOT

DEFAULT = ROOT / "finetune" / "cleaning_rules.toml"


@pytest.fixture(scope="module")
def default() -> Cleaner:
    return Cleaner(read_rules(DEFAULT, "--rules"))


def made(folder: Path, text: str) -> Rules:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return read_rules(path, "--rules")


def tags_by(folder: Path, body: str, tags: str) -> str:
    cleaned = Cleaner(made(folder, f"[[tags.rule]]\nname = 'one'\n{body}")).clean({"tags": tags})
    assert (cleaned.changes["one"] > 0) == (cleaned.entry["tags"] != tags)
    return str(cleaned.entry["tags"])


def caption_by(folder: Path, body: str, caption: str) -> str:
    cleaned = Cleaner(made(folder, f"[[captions.rule]]\nname = 'one'\n{body}")).clean({"caption": caption})
    assert (cleaned.changes["one"] > 0) == (cleaned.entry["caption"] != caption)
    return str(cleaned.entry["caption"])


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("1girl,  long_hair ,looking_at_viewer,", "1girl, long hair, looking at viewer"),
        ("1girl, ^_^, o_o, >_<, (o)_(o), black_hair", "1girl, ^_^, o_o, >_<, (o)_(o), black hair"),
        (r"kazusa_\(blue_archive\), halo", r"kazusa \(blue archive\), halo"),
        ("1girl, solo, rating:safe", "1girl, solo"),
        ("rating:questionable, 1girl, Rating:Explicit", "1girl"),
        ("general, 1girl", "general, 1girl"),
        ("woman, gray hair", "girl, grey hair"),
        ("man, lady gaga", "man, lady gaga"),
        ("<my_cat>, photo_of_<my_Dog>, <lora:a_b:0.8>", "<my_cat>, photo of <my_Dog>, <lora:a_b:0.8>"),
        ("smile, 1girl, Smile", "smile, 1girl"),
        # one person: all that is said is said of her
        ("1girl, solo, black hair, blue hair, red eyes", "1girl, solo, black hair, blue hair, red eyes"),
        # several: who has which?
        ("2girls, solo, black hair, blonde_hair, red eyes", "2girls, red eyes"),
        ("multiple_girls, black hair, blue eyes, red eyes", "multiple girls, black hair"),
        ("2girls, brown hair, light_brown hair", "2girls, light brown hair"),  # one look, said more or less exactly
        ("2girls, black hair, light_brown_hair", "2girls"),
        ("2girls, long hair, very long hair", "2girls, long hair, very long hair"),
        ("2girls, short hair, long hair, very long hair, absurdly long hair", "2girls"),
        # a girl and a boy: who has the beard can be told
        ("1girl, 1boy, solo, brown hair, red hair", "1girl, 1boy, brown hair, red hair"),
        ("1girl, 1boy, long sleeves, puffy sleeves", "1girl, 1boy, long sleeves, puffy sleeves"),
        (
            "1boy, 1girl, black hair, facial hair, brown eyes, closed eyes",
            "1boy, 1girl, black hair, facial hair, brown eyes, closed eyes",
        ),
        # looks that go with every colour, and with one another
        ("2girls, blonde hair, messy hair, wet hair", "2girls, blonde hair, messy hair, wet hair"),
        ("2girls, aqua eyes, closed eyes, heterochromia", "2girls, aqua eyes, closed eyes, heterochromia"),
        ("2boys, black hair, facial hair, chest hair", "2boys, black hair, facial hair, chest hair"),
        ("2girls, black_hair, red hair, messy_hair", "2girls, messy hair"),
        ("2girls, ponytail, ahoge, hair bun, braid", "2girls, ponytail, ahoge, hair bun, braid"),
        (
            "2girls, twintails, low twintails, long sleeves, wide sleeves",
            "2girls, low twintails, long sleeves, wide sleeves",
        ),
        ("3boys, long hair, short hair, red hair", "3boys, red hair"),
        ("2girls, long hair, red hair, hand in own hair", "2girls, long hair, red hair, hand in own hair"),
        ("2girls, ponytail, twintails, long sleeves, sleeveless, hime cut, bob cut", "2girls"),
        ("2girls, solo focus, ahoge", "2girls, solo focus, ahoge"),
        # 'shirt' says nothing beside 'white shirt'
        ("shirt, white shirt, hair ornament, star hair ornament", "white shirt, star hair ornament"),
        ("long hair, very long hair", "long hair, very long hair"),
        ("(long_hair, hat:1.2), smile", "(long hair, hat:1.2), smile"),
        ("猫，犬, 空", "猫，犬, 空"),
        ("1girl, solo", "1girl, solo"),
        ("", ""),
    ],
)
def test_tags(default: Cleaner, tags: str, expected: str) -> None:
    assert default.clean({"tags": tags}).entry == {"tags": expected}


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a woman and two women with a man", "a girl and two girls with a man"),
        ("A Woman  sitting on a chair .", "a girl sitting on a chair"),
        ("an anime girl with blue hair", "a girl with blue hair"),
        ("an anime anime cartoon woman", "a girl"),
        ("two cartoon characters and an anime character", "two characters and a character"),
        ("a house on a cartoon image", "a house on an image"),
        ("a human with a mandolin beside spider-man", "a human with a mandolin beside spider-man"),
        ("the women's hats", "the girls' hats"),
        ("arafed woman in a red dress", "girl in a red dress"),
        ("there is a man that is standing", "a man that is standing"),
        ("a anime style of a girl with a hat", "a girl with a hat"),
        ("a picture of a picture of a dog", "a dog"),
        ("a photo of a dog", "a photo of a dog"),
        ("a girl girl with the the hat.", "a girl with the hat"),
        ("a woman girl in in an anime anime", "a girl in an anime"),
        (
            "duran duran in bora bora dance the cha cha cha: no no no",
            "duran duran in bora bora dance the cha cha cha: no no no",
        ),
        ("live and let live and let die", "live and let live and let die"),
        # not everybody is a girl or a boy
        ("an old man with a beard", "an old man with a beard"),
        ("Iron Man and Lady Gaga", "iron man and lady gaga"),
        ("an anime lady and a cartoon man", "a lady and a man"),
        ("a person among people", "a person among people"),
        # names that somebody taught a model
        ("a <woman> and a <Anime woman>'s Hat", "a <woman> and a <Anime woman>'s hat"),
        ("anime <anime girl> arafed <an arafed thing> <a a>", "anime <anime girl> <an arafed thing> <a a>"),
        ("a < b woman", "a < b girl"),
        ("cat, cat, dog", "cat, cat, dog"),
        ("a (red:1.2) hat and (anime woman:1.1) (anime woman:1.1)", "a (red:1.2) hat and (girl:1.1) (girl:1.1)"),
        ("a house in the U.S.", "a house in the u.s."),
        ("to be continued...", "to be continued..."),
        ("{woman|man} in a park", "{girl|man} in a park"),
        ("一人の女性、woman", "一人の女性、girl"),
        ("there is", "there is"),
        ("a dog", "a dog"),
        ("a woman.\na man.\r\n", "a girl\na man\r\n"),
        ("a dog\narafed\n", "a dog\n"),
        ("a dog\narafed", "a dog"),
    ],
)
def test_captions(default: Cleaner, caption: str, expected: str) -> None:
    assert default.clean({"caption": caption}).entry == {"caption": expected}


def test_other_fields_and_the_entry_itself_stay(default: Cleaner) -> None:
    entry: dict[str, Any] = {"train_resolution": [512, 448], "tags": "long_hair", "x": {"caption": "woman"}, "n": None}
    before = dict(entry)
    cleaned = default.clean(entry)
    assert entry == before and list(cleaned.entry) == list(entry)
    assert cleaned.entry == {**before, "tags": "long hair"} and cleaned.changes == {"underscores": 1}


WORDS = (
    "<woman> <S1 woman> < > lady "
    "a an the woman women man men girl girls boy anime cartoon manga style anime-style character characters image "
    "picture drawing of there is are this arafed hat human with and . , ... U.S. 2 (girl:1.2) {a|b} Women's women’s İ ß"
)
TAGS = (
    "1girl 2girls 1boy multiple_girls solo long_hair very_long_hair short_hair black_hair Black_Hair light_brown_hair "
    "ponytail braid twin_braids blue_eyes red_eyes shirt white_shirt women rating:safe ^_^ o_o (a ) [x:1.2] __ \\ "
    "hair_ornament star_hair_ornament sleeveless long_sleeves solo_focus <my_token> twintails "
    "messy_hair wet_hair facial_hair closed_eyes puffy_sleeves heterochromia"
)
MARKS = st.sampled_from([", ", ",", "  ", " ", ".", "\n", "\r\n", "\t", "\u3000", "，", ": "])


def texts(words: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(words.split()) | MARKS | st.just(" "), max_size=24).map("".join) | st.text(
        max_size=20
    )


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts(TAGS) | st.lists(st.sampled_from(TAGS.split()), max_size=12).map(", ".join))
def test_clean_tags_stay_as_they_are(default: Cleaner, tags: str) -> None:
    once = default.clean({"tags": tags}).entry
    again = default.clean(once)
    assert again.entry == once and not again.changes


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(st.sampled_from([tag for tag in TAGS.split() if tag[0].isalnum()]), max_size=12, unique_by=str.casefold)
)
def test_only_looks_that_contradict_each_other_go(default: Cleaner, tags: list[str]) -> None:
    """A look that is the only one of its family stays, and so does one that is of no family."""
    families = [
        ({"short hair"}, {"long hair", "very long hair"}),
        ({"black hair"}, {"light brown hair"}),
        ({"blue eyes"}, {"red eyes"}),
        ({"sleeveless"}, {"long sleeves"}),
        ({"ponytail"}, {"twintails"}),
    ]
    others = {"solo", "women", "rating:safe", "shirt", "hair ornament"}  # of other rules
    given_ones = {tag_key(tag) for tag in tags}
    kept = set(map(tag_key, str(default.clean({"tags": ", ".join(tags)}).entry["tags"]).split(", ")))
    several = bool({"2girls", "multiple girls", "women"} & given_ones)
    unclear = [set[str]().union(*looks) for looks in families if several and all(look & given_ones for look in looks)]
    assert given_ones - others - kept == given_ones & set[str]().union(*unclear)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(texts(WORDS) | st.lists(st.sampled_from(WORDS.split()), max_size=14).map(" ".join))
def test_clean_captions_stay_as_they_are(default: Cleaner, caption: str) -> None:
    once = default.clean({"caption": caption}).entry
    again = default.clean(once)
    assert again.entry == once and not again.changes


def test_the_rules_run_once_and_in_their_order(tmp_path: Path) -> None:
    swap = "[[tags.rule]]\nname = '{}'\nreplace = {{ '{}' = '{}' }}\n"
    rules = made(tmp_path, swap.format("first", "a", "b") + swap.format("second", "b", "a"))
    cleaned = Cleaner(rules).clean({"tags": "a, b, c"})
    assert cleaned.entry == {"tags": "a, a, c"} and cleaned.changes == {"first": 1, "second": 2}
    swapped = made(tmp_path, swap.format("one", "a", "a, b"))  # what was put in is not looked at again
    assert Cleaner(swapped).clean({"tags": "a"}).entry == {"tags": "a, b"}


@pytest.mark.parametrize(
    ("body", "tags", "expected"),
    [
        ("remove = ['*_girl', 'smile']\nexcept = ['magical girl']", "cat girl, Magical_Girl, smile", "Magical_Girl"),
        ("lower_case = true\nexcept = [':D']", "Long Hair, :D", "long hair, :D"),
        ("replace = { 'Cat Ears' = 'cat, ears' }", "hat,cat_ears", "hat, cat, ears"),
        ("underscores_to_blanks = true\nexcept = ['score_*']", "score_9, a_b, _", "score_9, a b, _"),
        ("when_any = ['dog']\nremove = ['cat']", "cat, bird", "cat, bird"),
        ("when_any = ['dog', ['bird', 'tree']]\nremove = ['cat']", "cat, bird", "cat, bird"),
        ("when_any = ['dog', ['bird', 'tree']]\nremove = ['cat']", "tree, cat, bird", "tree, bird"),
        ("when_any = ['dog']\nremove = ['cat']", "dog, cat", "dog"),
        ("remove_if_several = [['red *', 'blue *'], ['* hat']]", "red hat, big hat, blue sky", "big hat"),
        ("remove_if_several = [['* hat', ['cap', '* cap']]]", "cap, red cap, Red_Cap", "cap, red cap, Red_Cap"),
        ("remove_if_several = [['* hat', ['cap', '* cap']]]", "cap, red cap, x, red hat", "x"),
        ("remove_if_several = [['* hair']]\nexcept = ['wet *']", "red hair, wet hair", "red hair, wet hair"),
        ("lower_case = true", "A <B> C <D", "a <B> c <d"),
        ("remove_if_several = [['* hair']]", "red hair, Red_Hair", "red hair, Red_Hair"),
        ("deduplicate = true\nexcept = ['BREAK']", "a, BREAK, b, BREAK, a", "a, BREAK, b, BREAK"),
        ("remove_covered = true", "a, " + "word " * 9 + "a", "a, " + "word " * 9 + "a"),
        ("tidy = true", "a,b ,, c   d", "a, b, c d"),
    ],
)
def test_actions_for_tags(tmp_path: Path, body: str, tags: str, expected: str) -> None:
    assert tags_by(tmp_path, body, tags) == expected


@pytest.mark.parametrize(
    ("body", "caption", "expected"),
    [
        ("replace = { 'cat' = 'dog', 'big cat' = 'lion' }", "a Big  cat, a Cat, CAT, cats", "a Lion, a Dog, DOG, cats"),
        ("replace = { 'a' = 'a a' }", "a b a", "a a b a a"),
        ("replace = { 'c++' = 'code', '(x)' = 'y' }", "c++ and c", "code and c"),
        ("remove = ['nice']", "Nice, a nice dog, nice, nice, big, nice.", "a dog, big."),
        ("remove = ['nice']", "nice., nice", ""),
        ("remove = ['nice']", "nice, .nice", ".nice"),
        (
            "remove = ['nice']",
            "a (nice:1.2) dog, (nice dog:1.1), niceness",
            "a (nice:1.2) dog, (nice dog:1.1), niceness",
        ),
        ("remove = ['nice']\nbefore = ['dog']", "a nice nice dog, a nice cat, a Nice dog", "a dog, a nice cat, a dog"),
        ("remove_start = ['here is', 'here']", "Here is here a here dog", "a here dog"),
        ("remove_start = ['a', 'a a']", "a a a a", "a"),
        ("remove_start = ['a', 'a a']", "a a ", "a "),
        ("remove_repeats = true", "a b c a b c a b c, d D d 7 7 (x) (x)", "a b c, d 7 7 (x) (x)"),
        ("remove_repeats = ['a', 'Hat']", "a a b b A hat a hat with a with a", "a b b A hat with a with a"),
        ("replace = { '<cat>' = 'dog', 'cat' = 'pet' }", "<cat> <a cat> cat", "dog <a cat> pet"),
        ("remove = ['<cat>', 'a cat']", "a <cat> <x a cat y> a cat", "a <x a cat y>"),
        ("remove_full_stop = true", "one dog. ", "one dog"),
        ("remove_full_stop = true", "one (dog).", "one (dog)"),
        ("remove_full_stop = true", "one dog ,.", "one dog ,."),
        ("lower_case = true", "A Dog", "a dog"),
    ],
)
def test_actions_for_captions(tmp_path: Path, body: str, caption: str, expected: str) -> None:
    assert caption_by(tmp_path, body, caption) == expected


def test_a_text_that_no_rule_changes_stays_to_the_letter(tmp_path: Path) -> None:
    rules = made(tmp_path, "[[tags.rule]]\nname = 'x'\nremove = ['y']\n[[captions.rule]]\nname = 'z'\nremove = ['y']\n")
    entry = {"tags": " a,b ,, (c\r\n d", "caption": "  a \r b  .\n\n"}
    assert Cleaner(rules).clean(entry).entry == entry


@pytest.mark.parametrize(
    "text",
    [
        "anime " * 40_000 + "x",
        "there is " * 40_000,
        "a picture of " * 30_000,
        "woman" + " " * 300_000 + "man",
        "arafed," * 40_000,
        " ," * 150_000,
        "a b " * 60_000,
        "(" * 200_000,
        "(a," * 60_000,
        "<" * 200_000,
        "<woman " * 40_000,
        "> <a_b" * 40_000,
        "x_" * 150_000,
        "tag " * 60_000,
        ", ".join(f"word{number} hair" for number in range(5_000)),
    ],
    ids=lambda text: text[:8],
)
def test_no_text_takes_long(default: Cleaner, text: str) -> None:
    started = time.process_time()
    default.clean({"caption": text, "tags": text})
    assert time.process_time() - started < 5


def test_counts(default: Cleaner) -> None:
    rules, tally = read_rules(DEFAULT, "--rules"), Tally()
    entries = {
        "a": {"caption": "a woman and a woman", "tags": "rating:safe"},
        "b": {"caption": "women", "tags": "x"},
        "c": {"tags": "rating:safe"},
        "d": {"caption": "a dog"},
    }
    for key, entry in entries.items():
        tally.add(key, entry, default.clean(entry))
    told = list(tally.told(rules))
    assert {"girl: 2 captions (3 places)", "ratings: tags of 2 pictures", "style: 0 captions"} < set(told)
    assert told[-1] == "3 of 4 entries changed" and len(told) == len(rules.tags) + len(rules.captions) + 1
    assert tally.warning() == "1 of them has neither caption nor tags any more, and a training asks for one of these: c"


def test_every_rule_of_the_shipped_file_does_something(default: Cleaner) -> None:
    entry = {
        "tags": "rating:safe,2girls, solo, red_hair, red_hair, black hair, woman, shirt, white shirt",
        "caption": "There  is arafed arafed woman with an anime woman girl.",
    }
    file = tomllib.loads(DEFAULT.read_text(encoding="utf-8"))
    names = {rule["name"] for part in ("tags", "captions") for rule in file[part]["rule"]}
    assert set(default.clean(entry).changes) == names

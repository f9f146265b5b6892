"""From confidences to a line of tags, and what the options about it mean."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from library.captioning.tag_list import Category, TagList
from library.captioning.tag_options import check_names, check_tagger_options, split_replacements
from library.captioning.tag_text import count_tags, joined_tags, plan_tags, tag_line, torn_tags, without_underscores
from library.core.errors import UserError
from library.options.captioning import FolderOptions, TaggerOptions

R, G, C = Category.RATING, Category.GENERAL, Category.CHARACTER
TAGS = TagList(
    ("general", "explicit", "1girl", "long_hair", "^_^", "(o)_(o)", "sky,_blue", "miku", "saber_(fate)"),
    (R, R, G, G, G, G, G, C, C),
)
FOLDERS = FolderOptions(("pictures",))


def line(confidences: dict[str, float], **options: Any) -> str:
    """The line for the tags that have a confidence; the options are checked first, as the script does."""
    asked = TaggerOptions(**options)
    check_tagger_options(asked, FOLDERS)
    check_names(asked, TAGS)
    values = np.array([confidences.get(name, 0.0) for name in TAGS.names], np.float32)
    return tag_line(values, plan_tags(TAGS, asked))


ALL = {name: 0.9 for name in TAGS.names if name != "sky,_blue"}


def problems(**options: Any) -> dict[str, tuple[str, str]]:
    """What is wrong with options, by where it stands."""
    asked = TaggerOptions(**options)
    with pytest.raises(UserError) as caught:
        check_tagger_options(asked, FOLDERS)
        check_names(asked, TAGS)
    return {problem.where: (problem.what, problem.fix) for problem in caught.value.problems}


def test_tags_from_the_threshold_on_in_the_order_of_the_list() -> None:
    found = {"miku": 0.99, "long_hair": 0.35, "1girl": 0.5, "^_^": 0.3499, "general": 0.99}
    assert line(found) == "1girl, long_hair, miku"
    assert line(found, thresh=0.36) == "1girl, miku"
    assert line({}) == ""


def test_thresholds_of_general_tags_and_of_characters() -> None:
    found = {"1girl": 0.5, "miku": 0.5}
    assert line(found, general_threshold=0.6) == "miku"
    assert line(found, character_threshold=0.6) == "1girl"
    assert line(found, thresh=0.9, general_threshold=0.5, character_threshold=0.5) == "1girl, miku"


def test_underscores_go_and_faces_keep_theirs() -> None:
    assert line(ALL, remove_underscore=True) == "1girl, long hair, ^_^, (o)_(o), miku, saber (fate)"
    assert [without_underscores(name) for name in (">_<", "||_||", "a_b_c")] == [">_<", "||_||", "a b c"]


@pytest.mark.parametrize("name", ["long_hair", "long hair", " long_hair "])
def test_options_name_tags_with_underscores_or_blanks(name: str) -> None:
    assert line(ALL, undesired_tags=name) == "1girl, ^_^, (o)_(o), miku, saber_(fate)"
    assert line(ALL, always_first_tags=name).startswith("long_hair, 1girl, ")
    assert line(ALL, tag_replacement=f"{name},hair", remove_underscore=True).startswith("1girl, hair, ^_^")


def test_always_first_in_the_order_of_the_option_and_before_the_rating() -> None:
    first = "miku, ^_^"
    assert line(ALL, always_first_tags=first, use_rating_tags=True).startswith("miku, ^_^, general, 1girl, long_hair")
    assert line({"1girl": 0.9}, always_first_tags=first) == "1girl"  # only where they are found


def test_the_likeliest_rating_stands_in_front_or_last() -> None:
    found = {"general": 0.1, "explicit": 0.2, "1girl": 0.9, "miku": 0.9}  # whatever the threshold
    assert line(found, use_rating_tags=True) == "explicit, 1girl, miku"
    assert line(found, use_rating_tags_as_last_tag=True) == "1girl, miku, explicit"
    assert line(found, use_rating_tags=True, undesired_tags="explicit") == "1girl, miku"


def test_characters_first() -> None:
    assert line({"1girl": 0.9, "miku": 0.5}, character_tags_first=True) == "miku, 1girl"


def test_replacements() -> None:
    assert line(ALL, tag_replacement="1girl,woman;miku,a\\, b\\; c") == (
        "woman, long_hair, ^_^, (o)_(o), a, b; c, saber_(fate)"
    )
    assert line(ALL, tag_replacement="1girl,miku") == "miku, long_hair, ^_^, (o)_(o), saber_(fate)"  # each tag once
    # what is written for another can be named as well
    assert line(ALL, tag_replacement="miku,star", always_first_tags="star").startswith("star, 1girl")
    assert line({"miku": 0.9}, tag_replacement="miku,star", undesired_tags="star") == ""
    # a tag of the list with a comma
    assert line({"sky,_blue": 0.9}, tag_replacement="sky\\,_blue,sky") == "sky"


@pytest.mark.parametrize("text", ["1girl", "1girl,", ",woman", "1girl,a,b", "1girl,a;miku", ";", "1girl,\x1b[31m"])
def test_malformed_replacements_are_errors(text: str) -> None:
    assert "--tag_replacement" in problems(tag_replacement=text)


def test_a_tag_that_would_become_two_others() -> None:
    assert "two tags" in problems(tag_replacement="long_hair,a;long hair,b")["--tag_replacement"][0]
    assert split_replacements("a,b;a,b;") == {"a": "b"}


def test_unknown_names_are_told_with_the_nearest_valid_one() -> None:
    found = problems(tag_replacement="saber (fat),x;qqqq,y")["--tag_replacement"]
    assert found[0] == "the tagger knows no tag 'qqqq'" and "did you mean" not in found[1]
    found = problems(tag_replacement="saber (fat),x")["--tag_replacement"]
    assert found == ("the tagger knows no tag 'saber_(fat)'", "did you mean saber_(fate)?")


def test_one_list_may_serve_several_taggers(caplog: pytest.LogCaptureFixture) -> None:
    """What is undesired, or first where it is found, may be unknown: the wish is fulfilled by itself."""
    caplog.set_level(logging.WARNING, "sd_atelier")
    logging.getLogger("sd_atelier").propagate = True
    many = ",".join(f"qqqq{number}" for number in range(20))
    found = line(ALL, undesired_tags="lng_hair, 1girl", always_first_tags=f"xyz\x1b, miku, {many}")
    assert found == "miku, long_hair, ^_^, (o)_(o), saber_(fate)"
    told = list(dict.fromkeys(caplog.messages))  # caught twice where another test left a handler
    assert told[0] == "--undesired_tags: this tagger has no tag lng_hair (did you mean long_hair?)"
    assert told[1].startswith("--always_first_tags: this tagger has no tag xyz\\x1b, qqqq0, ")
    assert told[1].endswith(" and 16 more") and len(told) == 2


def test_options_that_exclude_one_another() -> None:
    assert "--use_rating_tags, --use_rating_tags_as_last_tag" in problems(
        use_rating_tags=True, use_rating_tags_as_last_tag=True
    )
    assert "--undesired_tags, --always_first_tags" in problems(
        undesired_tags="long_hair", always_first_tags="long hair"
    )
    assert "--undesired_tags, --tag_replacement" in problems(undesired_tags="1girl", tag_replacement="1girl,x")
    assert "--undesired_tags" in problems(undesired_tags=" , ")
    for separator in ("", "\n", "\x1b"):
        assert "--caption_separator" in problems(caption_separator=separator)
    with pytest.raises(UserError, match="--append_tags, --overwrite"):
        check_tagger_options(TaggerOptions(append_tags=True), replace(FOLDERS, overwrite=True))


def test_options_that_a_model_cannot_serve() -> None:
    bare = TagList(("1girl",), (G,))
    asked = (
        {"use_rating_tags": True},
        {"use_rating_tags_as_last_tag": True},
        {"character_tags_first": True},
        {"character_threshold": 0.35},
    )
    for options in asked:
        with pytest.raises(UserError, match=f"--{next(iter(options))}: this tagger has no"):
            check_names(TaggerOptions(**options), bare)  # type: ignore[arg-type]


def test_tags_that_read_as_several_are_told_of() -> None:
    def torn(**options: Any) -> list[str]:
        return torn_tags(plan_tags(TAGS, TaggerOptions(**options)), TAGS)

    assert torn() == ["sky,_blue"]
    assert torn(undesired_tags="sky\\,_blue") == []
    assert torn(caption_separator=" ", remove_underscore=True) == ["long hair", "sky, blue", "saber (fate)"]
    assert torn(tag_replacement="miku,a\\, b;sky\\,_blue,sky") == []


def test_control_characters_in_names_are_written_as_codes() -> None:
    tags = TagList(("a\x1b[31m\nb",), (G,))
    assert tag_line(np.ones(1, np.float32), plan_tags(tags, TaggerOptions())) == "a\\x1b[31m\\nb"


def test_another_separator() -> None:
    assert line({"1girl": 1, "miku": 1}, caption_separator=" | ") == "1girl | miku"
    assert joined_tags("1girl | x", "miku | x", " | ") == "1girl | x | miku"


def test_appending_keeps_the_old_tags_in_front_and_writes_each_once() -> None:
    assert joined_tags("cat , 1girl,long hair, cat", "1girl, long_hair, sky", ", ") == (
        "cat , 1girl,long hair, cat, sky"
    )
    assert (
        joined_tags("1girl , rating:safe , ", "solo", ", ") == "1girl , rating:safe, solo"
    )  # DeepDanbooru's own files
    assert joined_tags(" , ", "solo, a_b, solo, a b", ", ") == "solo, a_b"


def test_what_the_user_wrote_stays_as_it_is() -> None:
    prose = "sks man, red, red,  standing. yes, no, no"
    assert joined_tags(prose, "red, solo", ", ") == f"{prose}, solo"
    assert joined_tags(f"{prose},", "red, no", ", ") == f"{prose},"  # nothing to add
    assert joined_tags("a , b ,, ", "c", ", ") == "a , b, c"


_WORDS = st.lists(st.sampled_from(["a", "b_c", "b c", "^_^", ""]), max_size=6).map(", ".join)


@given(_WORDS, _WORDS)
def test_appending_twice_is_appending_once(old: str, new: str) -> None:
    once = joined_tags(old, new, ", ")
    assert joined_tags(once, new, ", ") == once


def test_counts_are_sorted_by_frequency_then_name() -> None:
    assert count_tags(["b, a", "a,c", "", "a"], ", ") == [("a", 3), ("b", 1), ("c", 1)]

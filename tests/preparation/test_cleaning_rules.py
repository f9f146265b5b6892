"""Rules files: every mistake is told at once, with its line, what it is and the mend."""

from __future__ import annotations

from pathlib import Path

import pytest

from library.core.errors import UserError
from library.preparation.cleaning import Cleaner
from library.preparation.rules import read_rules
from tests.training.runs import ROOT

TAG, CAPTION = "[[tags.rule]]\nname = 'one'\n", "[[captions.rule]]\nname = 'one'\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "line", "what", "fix"),
    [
        ("# nothing\n", None, "no rules", "[[tags.rule]]"),
        ("[tags]\n", None, "no rules", "[[captions.rule]]"),
        ("[[tag.rule]]\n", 1, "tag is not a part", "did you mean tags?"),
        ("[[tags.rules]]\nname = 'x'\n", 1, "rules is not a key of tags", "did you mean rule?"),
        ("tags = 3\n", 1, "tags must be a table", "[[tags.rule]]"),
        ("[tags.rule]\nname = 'x'\n", 1, "list of tables", "double brackets"),
        (f"{TAG}remov = ['a']\n", 3, "remov is not a key of [[tags.rule]]", "did you mean remove?"),
        (f"{TAG}remove_start = ['a']\n", 3, "remove_start is not a key", "it belongs to [[captions.rule]]"),
        (f"{CAPTION}except = ['a']\ntidy = true\n", 3, "except is not a key", "it belongs to [[tags.rule]]"),
        (f"{TAG}", 1, "the rule does nothing", "remove_if_several"),
        (f"{TAG}remove = ['a']\ntidy = true\n", 4, "2 actions: remove, tidy", "a rule of each"),
        ("[[tags.rule]]\ntidy = true\n", 1, "no name", "name ="),
        ("[[tags.rule]]\nname = ' '\ntidy = true\n", 2, "empty text", "name ="),
        (f"{TAG}tidy = true\n[[captions.rule]]\nname = 'One'\ntidy = true\n", 5, "'One' stands twice", "another"),
        (f"{TAG}tidy = false\n", 3, "must be true", "tidy = true"),
        (f"{TAG}tidy = true\nexcept = ['a']\n", 4, "except does nothing", "leave it out"),
        (f"{TAG}remove = 'a'\n", 3, "a list in [ ] is needed, got 'a'", "remove = ["),
        (f"{TAG}remove = []\n", 3, "empty list", "remove = ["),
        (f"{TAG}remove = ['a', '']\n", 3, "empty text", "remove = ["),
        (f"{TAG}remove = ['a', 3]\n", 3, "text in quotes is needed, got 3", "remove = ["),
        (f"{TAG}remove = ['a, b']\n", 3, "holds a comma", "remove = ["),
        (f"{TAG}remove = ['{'a' * 201}']\n", 3, "more than 200 letters", "remove = ["),
        (f'{TAG}remove = ["a\\tb"]\n', 3, "control character", "remove = ["),
        (f"{TAG}remove_if_several = ['a']\n", 3, "a list in [ ] is needed, got 'a'", "[["),
        (f"{TAG}remove_if_several = [['a', []]]\n", 3, "empty list", "[["),
        (f"{CAPTION}remove_repeats = ['a', 'b c']\n", 3, "'b c' is more than one word", 'remove_repeats = ["a"'),
        (f"{CAPTION}remove_repeats = false\n", 3, "must be true", "remove_repeats = ["),
        (f"{TAG}tidy = true\nwhen_any = [['a', []]]\n", 4, "text in quotes is needed", "when_any = ["),
        (f"{TAG}replace = 'a'\n", 3, "old and new texts in { }", "replace = {"),
        (f"{TAG}replace = {{ 'a' = '' }}\n", 3, "use remove for it", "replace = {"),
        (f"{TAG}replace = {{ 'a*' = 'b' }}\n", 3, "only whole texts can be replaced", "replace = {"),
        (f"{TAG}replace = {{ 'a_b' = 'x', 'A b' = 'y' }}\n", 3, "'A b' and 'a_b' are the same", "replace = {"),
        (f"{CAPTION}remove = ['a*']\n", 3, "has its meaning in patterns of tags", "remove = ["),
        (f"{CAPTION}tidy = true\nbefore = ['a']\n", 4, "before does nothing beside tidy", "belongs to remove"),
    ],
)
def test_mistakes(tmp_path: Path, text: str, line: int | None, what: str, fix: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as caught:
        read_rules(path, "--rules")
    (problem,) = caught.value.problems
    assert what in problem.what and fix in problem.fix
    assert problem.where.startswith(str(path) if line is None else f"{path}, line {line}, ")


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = f"{TAG}remov = ['a']\nremove = ['']\n{CAPTION}tidy = false\nlower_case = true\nx = 1\n[more]\n"
    with pytest.raises(UserError) as caught:
        read_rules(written(tmp_path, text), "--rules")
    told = " ".join(problem.what for problem in caught.value.problems)
    parts = ("more", "remov is", "remove: an empty", "stands twice", "tidy: must", "2 actions", "x is not")
    assert all(part in told for part in parts) and len(caught.value.problems) == len(parts)


@pytest.mark.parametrize("text", ["[tags\n", "a = 1\na = 2\n"])
def test_no_toml(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"not valid TOML.*line"):
        read_rules(written(tmp_path, text), "--rules")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--rules: the file .* does not exist"):
        read_rules(tmp_path / "none.toml", "--rules")


def test_the_comments_of_the_shipped_file_name_every_action() -> None:
    """Else nobody would find it."""
    text = (ROOT / "finetune" / "cleaning_rules.toml").read_text(encoding="utf-8")
    shown = {line.removeprefix("#").split("=")[0].strip() for line in text.splitlines() if line.startswith("#   ")}
    actions = (
        *("tidy", "lower_case", "underscores_to_blanks", "replace", "remove", "remove_if_several", "remove_covered"),
        *("deduplicate", "remove_start", "remove_repeats", "remove_full_stop"),
    )
    assert {*actions, "when_any", "except", "before"} <= shown


def test_the_rules_that_are_off_can_be_switched_on(tmp_path: Path) -> None:
    """Each stands below a # [[...rule]], in lines of comments up to the next empty one."""
    text = (ROOT / "finetune" / "cleaning_rules.toml").read_text(encoding="utf-8")
    blocks = [block for block in text.split("\n\n") if "\n# [[" in block]
    rules = "\n".join(line[2:] for block in blocks for line in f"# [[{block.split('# [[', 1)[1]}".splitlines())
    entry = {"tags": "man, dog", "caption": "two men and an anime male"}
    cleaned = Cleaner(read_rules(written(tmp_path, rules), "--rules")).clean(entry)
    assert cleaned.entry == {"tags": "boy, dog", "caption": "two boys and an boy"}


def test_one_table_of_a_file_is_enough(tmp_path: Path) -> None:
    rules = read_rules(written(tmp_path, f"{CAPTION}lower_case = true\n"), "--rules")
    assert Cleaner(rules).clean({"caption": "A", "tags": "A ,"}).entry == {"caption": "a", "tags": "A ,"}

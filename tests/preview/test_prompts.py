"""Files of prompts: what each form means, and that every mistake is told at once with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from library.core.errors import UserError
from library.core.sizes import Size
from library.preview.prompts import PromptDefaults, SamplePrompt, read_prompts

DEFAULTS = PromptDefaults(Size(256, 320), seed=40, sampler="euler_a")
# the two lines that the guides of the public tool show (SMP-16)
GUIDE = """# prompt 1
masterpiece, best quality, (1girl), in white shirts, upper body, looking at viewer, simple background --n low quality, \
worst quality, bad anatomy,bad composition, poor, low effort --w 768 --h 768 --d 1 --l 7.5 --s 28

# prompt 2
masterpiece, best quality, 1boy, in business suit, standing at street, looking back --n (low quality, worst quality), \
bad anatomy,bad composition, poor, low effort --w 576 --h 832 --d 2 --l 5.5 --s 40
"""


def read(folder: Path, text: str | bytes, ending: str = ".txt") -> tuple[SamplePrompt, ...]:
    file = folder / f"prompts{ending}"
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
    return read_prompts(file, DEFAULTS)


def mistakes(folder: Path, text: str | bytes, ending: str = ".txt") -> list[str]:
    with pytest.raises(UserError) as error:
        read(folder, text, ending)
    return [f"{p.where.replace(str(folder), '')}: {p.what} -> {p.fix}" for p in error.value.problems]


def test_the_lines_of_the_guides(tmp_path: Path) -> None:
    first, second = read(tmp_path, GUIDE)
    assert first.prompt.startswith("masterpiece, best quality, (1girl)") and first.prompt.endswith("simple background")
    assert first.negative_prompt.startswith("low quality, worst") and first.negative_prompt.endswith("low effort")
    assert (first.size, first.seed, first.scale, first.steps) == (Size(768, 768), 1, 7.5, 28)
    assert (second.size, second.seed, second.scale, second.steps) == (Size(576, 832), 2, 5.5, 40)
    assert {first.sampler, second.sampler} == {"euler_a"}


def test_a_prompt_that_says_nothing_more_has_the_defaults(tmp_path: Path) -> None:
    """Each has another seed, so that pictures differ, and always the same one."""
    first, second = read(tmp_path, "a cat\r\n\r\n   # a note\r\n  a dog -- or two \r\n")
    assert first == SamplePrompt("a cat", "", Size(256, 320), 40, 7.5, 30, "euler_a")
    assert second == SamplePrompt("a dog -- or two", "", Size(256, 320), 41, 7.5, 30, "euler_a")


def test_options_stand_in_any_order(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, "a red--blue cat --ss K_Euler --h 128 --n dog, --- snow --d 0")
    assert prompt == SamplePrompt("a red--blue cat", "dog, --- snow", Size(256, 128), 0, 7.5, 30, "k_euler")


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("ending", [".txt", ".json", ".toml"])
def test_every_form_is_utf_8(tmp_path: Path, mark: str, ending: str) -> None:
    word = "猫と犬"
    text = {
        ".txt": f"{word} --s 4",
        ".json": json.dumps([{"prompt": word, "sample_steps": 4}], ensure_ascii=False),
        ".toml": f'[prompt]\nsample_steps = 4\n[[prompt.subset]]\nprompt = "{word}"',
    }[ending]
    (prompt,) = read(tmp_path, mark + text, ending)
    assert (prompt.prompt, prompt.steps) == (word, 4)
    assert "not UTF-8 text" in mistakes(tmp_path, text.encode("shift_jis"), ending)[0]


TABLE: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "snow",
    "width": 128,
    "height": 192,
    "seed": 7,
    "scale": 3,
    "sample_steps": 5,
    "sample_sampler": "unipc",
}
FULL = SamplePrompt("a cat", "snow", Size(128, 192), 7, 3.0, 5, "unipc")


def test_json_holds_tables_and_lines(tmp_path: Path) -> None:
    texts = [TABLE, {"prompt": "a dog"}, "a bird --s 9 --d 1"]
    full, plain, line = read(tmp_path, json.dumps(texts), ".json")
    assert full == FULL
    assert plain == SamplePrompt("a dog", "", Size(256, 320), 41, 7.5, 30, "euler_a")
    assert line == SamplePrompt("a bird", "", Size(256, 320), 1, 7.5, 9, "euler_a")


def test_toml_has_what_prompts_share_once(tmp_path: Path) -> None:
    text = "[prompt]\n" + "\n".join(f"{key} = {json.dumps(value)}" for key, value in TABLE.items() if key != "prompt")
    text += '\n[[prompt.subset]]\nprompt = "a cat"\n[[prompt.subset]]\nprompt = "a dog"\nseed = 8\nscale = 2.5'
    assert read(tmp_path, text, ".toml") == (FULL, SamplePrompt("a dog", "snow", Size(128, 192), 8, 2.5, 5, "unipc"))


def test_all_mistakes_of_a_text_are_told_with_their_lines(tmp_path: Path) -> None:
    text = "a cat --w 500 --q 3\n# fine\n--w 64\na dog --width 64 --h64 --s x --s 3\nb --l 0.5 --d -1 --ss eulr_a --w"
    assert mistakes(tmp_path, text) == [
        "/prompts.txt, line 1: there is no option --q -> there are --n, --w, --h, --d, --l, --s, --ss",
        "/prompts.txt, line 4: there is no option --width -> did you mean --w? A blank stands before its value",
        "/prompts.txt, line 4: there is no option --h64 -> did you mean --h? A blank stands before its value",
        "/prompts.txt, line 4: --s is given twice -> remove one of them",
        "/prompts.txt, line 1, --w: must be a multiple of 8, got 500; the nearest are 496 and 504 -> correct it",
        "/prompts.txt, line 3: there is no prompt -> say what the picture should show",
        "/prompts.txt, line 4, --s: must be a whole number, got 'x' -> correct it",
        "/prompts.txt, line 5, --w: must be a whole number, got '' -> correct it",
        "/prompts.txt, line 5, --d: must be between 0 and 9223372036854775807, got -1 -> correct it",
        "/prompts.txt, line 5, --l: must be between 1 and 100, got 0.5 -> correct it",
        "/prompts.txt, line 5, --ss: there is no sampler 'eulr_a'; did you mean euler_a? -> correct it",
    ]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--w 32", "between 64 and 4096"),
        ("--h 8192", "between 64 and 4096"),
        ("--s 0", "between 1 and 500"),
        ("--s 501", "between 1 and 500"),
        ("--l nan", "between 1 and 100"),
        ("--l high", "must be a number"),
        ("--d 9223372036854775808", "between 0 and"),
        ("--d 1" + "0" * 5000, "must be a whole number"),
        ("--d 1.5", "must be a whole number"),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, line: str, told: str) -> None:
    (found,) = mistakes(tmp_path, f"a cat {line}")
    assert told in found and f"line 1, {line.split()[0]}" in found


def test_all_mistakes_of_tables_are_told(tmp_path: Path) -> None:
    texts = [{"prompt": "a", "steps": 3}, {"seed": True}, 5, "b --q", {"prompt": 1, "scale": "x"}]
    assert mistakes(tmp_path, json.dumps(texts), ".json") == [
        "/prompts.json, prompt 1, key steps: unknown key steps -> did you mean sample_steps?",
        "/prompts.json, prompt 3: must be a text or a table, got 5 -> write {\"prompt\": \"…\"}",
        "/prompts.json, prompt 4: there is no option --q -> there are --n, --w, --h, --d, --l, --s, --ss",
        "/prompts.json, prompt 2, key seed: must be a whole number, got True -> correct it",
        "/prompts.json, prompt 2, key prompt: there is no prompt -> say what the picture should show",
        "/prompts.json, prompt 5, key prompt: must be text, got 1 -> correct it",
        "/prompts.json, prompt 5, key scale: must be a number, got 'x' -> correct it",
    ]  # fmt: skip
    toml = '[prompt]\nwidht = 64\n[[prompt.subset]]\nprompt = "a"\nwidth = 65\n[[prompt.subset]]\nseed = 3\n[other]\n'
    assert mistakes(tmp_path, toml, ".toml") == [
        "/prompts.toml, line 8, key other: unknown key other -> write [prompt] and below it a [[prompt.subset]] for"
        " each prompt",
        "/prompts.toml, line 2, key widht: unknown key widht -> did you mean width?",
        "/prompts.toml, line 5, key width: must be a multiple of 8, got 65; the nearest are 64 and 72 -> correct it",
        "/prompts.toml, line 6, key subset: there is no prompt -> say what the picture should show",
    ]


def test_options_of_lines_are_no_words_of_tables(tmp_path: Path) -> None:
    """They would be drawn, silently."""
    texts = [{"prompt": "a cat -- or two --w 64"}, {"prompt": "a", "negative_prompt": "--SS ddim --ar 1"}]
    beside = "beside it, as a key of its own"
    assert mistakes(tmp_path, json.dumps(texts), ".json") == [
        f"/prompts.json, prompt 1, key prompt: --w would be read as text here -> take it out and write width = ..."
        f" {beside}",
        f"/prompts.json, prompt 2, key negative_prompt: --SS would be read as text here -> take it out and write"
        f" sample_sampler = ... {beside}",
        "/prompts.json, prompt 2, key negative_prompt: --ar would be read as text here -> take it out; two dashes with"
        " a blank behind them are text",
    ]
    shared = '[prompt]\nnegative_prompt = "x --d 1"\n[[prompt.subset]]\nprompt = "--h 64"'
    assert [place.partition(": ")[0] for place in mistakes(tmp_path, shared, ".toml")] == [
        "/prompts.toml, line 2, key negative_prompt",
        "/prompts.toml, line 4, key prompt",
    ]


def test_null_is_not_given_in_json(tmp_path: Path) -> None:
    nothing = dict.fromkeys(TABLE)
    assert read(tmp_path, json.dumps(["a cat", {**nothing, "prompt": "a dog"}]), ".json") == read(
        tmp_path, "a cat\na dog"
    )
    assert "there is no prompt" in mistakes(tmp_path, json.dumps([nothing]), ".json")[0]


def test_keys_of_json_that_stand_twice_are_told(tmp_path: Path) -> None:
    text = '[{"prompt": "a", "seed": 1, "prompt": "b", "seed": 1}, {"prompt": "a"}]'
    assert mistakes(tmp_path, text, ".json") == [
        "/prompts.json, prompt 1, key prompt: prompt is given twice -> remove one of them",
        "/prompts.json, prompt 1, key seed: seed is given twice -> remove one of them",
    ]


@pytest.mark.parametrize("text", [r'["a \ud83d cat"]', r'[{"prompt": "a \ud83d cat"}]'])
def test_half_a_character_is_refused(tmp_path: Path, text: str) -> None:
    (found,) = mistakes(tmp_path, text, ".json")
    assert "holds half a character (a lone surrogate, at place 3)" in found


def test_numbers_of_any_length_are_told(tmp_path: Path) -> None:
    (found,) = mistakes(tmp_path, json.dumps([{"prompt": "a", "width": 8 * 10**400}]), ".json")
    assert "must be between 64 and 4096, got 8000" in found


def test_letters_are_read_in_both_cases(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, "a cat --W 64 --H 72 --N dog --SS Heun")
    assert prompt == SamplePrompt("a cat", "dog", Size(64, 72), 40, 7.5, 30, "heun")
    assert "--W is given twice" in mistakes(tmp_path, "a cat --w 64 --W 64")[0]


def test_samplers_have_the_names_of_the_web_ui_as_well(tmp_path: Path) -> None:
    (prompt,) = read(tmp_path, "a cat --ss DPM++  2M --s 4")
    assert prompt.sampler == "dpmsolver++"
    (table,) = read(tmp_path, json.dumps([{"prompt": "a cat", "sample_sampler": "Euler a"}]), ".json")
    assert table.sampler == "euler_a"
    assert "did you mean dpm++ 2m?" in mistakes(tmp_path, "a cat --ss DPM++ 2M Karr")[0]


@pytest.mark.parametrize("option", ["cn", "am", "st", "nm", "sd", "g", "ow"])
def test_options_that_only_other_tools_have_suggest_nothing(tmp_path: Path, option: str) -> None:
    (found,) = mistakes(tmp_path, f"a cat --{option} 1")
    assert found.endswith("-> there are --n, --w, --h, --d, --l, --s, --ss")


@pytest.mark.parametrize(
    ("option", "letter"), [("widht", "w"), ("negative", "n"), ("steps", "s"), ("sampler", "ss"), ("SEED=3", "d")]
)
def test_options_that_are_nearly_right_suggest_the_letter(tmp_path: Path, option: str, letter: str) -> None:
    assert f"did you mean --{letter}?" in mistakes(tmp_path, f"a cat --{option} 1")[0]


@pytest.mark.parametrize(
    ("text", "ending", "told"),
    [
        ("# nothing\n\n", ".txt", "there is no prompt in"),
        ("[]", ".json", "there is no prompt in"),
        ("", ".toml", "there is no prompt in"),
        ("[prompt]\nwidth = 64\nprompt = 'a'", ".toml", "a [[prompt.subset]] for each prompt"),
        ("[" * 100_000, ".json", "nested too deeply"),
        ("[prompt]\na = " + "[" * 10_000, ".toml", "nested too deeply"),
        ("[[prompt]]\nprompt = 'a'", ".toml", "no tables of prompts"),
        ("prompt = 'a'", ".toml", "no tables of prompts"),
        ("[{", ".json", "not valid JSON"),
        ('{"prompt": "a"}', ".json", "holds no list of prompts"),
        ("[prompt", ".toml", "not valid TOML"),
        ("a cat", ".csv", "is no file of prompts"),
        ("a cat", "", "is no file of prompts"),
    ],
)
def test_files_without_prompts_are_told(tmp_path: Path, text: str, ending: str, told: str) -> None:
    (found,) = mistakes(tmp_path, text, ending)
    assert told in found


@pytest.mark.parametrize("ending", [".txt", ".json", ".toml"])
def test_a_missing_file_is_told(tmp_path: Path, ending: str) -> None:
    with pytest.raises(UserError, match="--sample_prompts"):
        read_prompts(tmp_path / f"none{ending}", DEFAULTS)

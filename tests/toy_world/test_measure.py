"""What is measured of the toy world's model, and that its README says the truth."""

from __future__ import annotations

import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples.toy_world import measure
from examples.toy_world.captions import sentence, tags
from examples.toy_world.contact_sheet import lay_out, sheet_scenes
from examples.toy_world.drawing import MODEL, WAY
from examples.toy_world.judge import Judge, Verdict
from examples.toy_world.measure import (
    BEGIN,
    BOUNDS,
    END,
    JUDGE_BOUND,
    PARTS,
    README,
    SHEET,
    THREE,
    VAE_BOUND,
    Judged,
    decibels_of,
    draw_and_judge,
    fingerprint,
    pictures_table,
    requests,
    share,
    through_vae,
    vae_table,
    weak_words,
    with_figures,
)
from examples.toy_world.world import BACKGROUNDS, COLOURS, PICTURE_SIZES, PLACES, SHAPES, SIZES, Scene
from library.core.errors import UserError, run_script
from tests.learning.learning import base_model

HEART = Scene("heart", "red", "sky", "left", "large")
LARGEST_SHEET = 300_000  # bytes


@cache
def plain_judge() -> Judge:
    return Judge()


def test_prompts_are_spread_over_all_words_and_sizes() -> None:
    wanted = requests(560)
    for part, words in (("shape", SHAPES), ("colour", COLOURS), ("background", BACKGROUNDS)):
        told = Counter(getattr(request.scene, part) for request in wanted)
        assert set(told) == set(words) and min(told.values()) >= 0.9 * 560 / len(words)
    for part, words in (("place", PLACES), ("size", SIZES)):
        told = Counter(getattr(request.scene, part) for request in wanted)
        assert set(told) == set(words) and min(told.values()) >= 0.8 * 560 / len(words)
    sizes = Counter(request.size for request in wanted)
    assert set(sizes) == set(PICTURE_SIZES) and sizes[64, 64] == 280 and min(sizes.values()) >= 46
    assert len({(request.scene, request.prompt, request.seed) for request in wanted}) == 560


def test_prompts_say_the_scene_in_three_forms() -> None:
    forms: Counter[str] = Counter()
    for request in requests(90):
        said = {
            "tags": [tags(request.scene)],
            "sentence": [sentence(request.scene)],
            "opened": [sentence(request.scene, opening) for opening in ("a picture of ", "a drawing of ")],
        }
        forms.update(name for name, texts in said.items() if request.prompt in texts)
    assert set(forms) == {"tags", "sentence", "opened"}
    assert sum(forms.values()) == 90 and min(forms.values()) >= 15


def test_prompts_follow_from_the_seed() -> None:
    assert requests(20) == requests(20)
    assert requests(20) == requests(60)[:20]
    assert requests(20) != requests(20, seed=1)


def judged(**seen: str) -> Judged:
    words = {part: getattr(HEART, part) for part in PARTS} | seen
    return Judged(HEART, (64, 64), Verdict(words["background"], words["shape"], words["colour"], words["place"]), 30.0)


def test_shares_count_what_is_right() -> None:
    those = [judged(), judged(shape="ring"), judged(shape="ring", place="right"), judged(colour="blue")]
    assert [share(those, part) for part in PARTS] == [0.75, 1, 0.5, 0.75]
    assert share(those, *THREE) == 0.25
    assert share([judged(place="right")], *THREE) == 1 and share([judged(place="right")], *PARTS) == 0


def test_tables_show_the_shares() -> None:
    those = [judged(), judged(shape="ring"), judged(place="right"), judged(colour="blue")]
    assert "| **all** | 4 | 75.0% | 100.0% | 75.0% | 50.0% | 75.0% |" in pictures_table(those, WAY)
    assert "| 64x64 | 4 | 75.0% |" in pictures_table(those, WAY)
    assert "| **all** | 4 | 30.0 dB | 75.0% | 100.0% | 75.0% | 75.0% | 25.0% |" in vae_table(those)
    assert "96x64" not in vae_table(those)


def test_weak_words_come_worst_first() -> None:
    those = [judged(), judged(shape="ring"), judged(shape="ring", colour="blue"), judged(shape="star")]
    assert weak_words(those) == ["heart 25.0% of 4 (2 as ring, 1 as star)", "red 75.0% of 4 (1 as blue)"]
    assert weak_words([judged()]) == []


def test_figures_go_between_the_markers() -> None:
    page = f"above\n{BEGIN}\nold\n{END}\nbelow\n"
    once = with_figures(page, "new")
    assert once == f"above\n{BEGIN}\n\nnew\n\n{END}\nbelow\n" == with_figures(once, "new")
    with pytest.raises(UserError, match="missing"):
        with_figures("nothing here", "new")


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--count", "0"], "--count"),
        (["--vae_count", "0"], "--vae_count"),
        (["--scale", "-1"], "--scale"),
        (["--steps", "-1"], "--steps"),
        (["--sheet", "sheet.jpg"], "--sheet"),
        (["--sheet", "no_such_folder/sheet.png"], "--sheet"),
        (["--model", "no_such_model.safetensors"], "no_such_model.safetensors"),
    ],
)
def test_mistakes_are_told_before_anything_is_drawn(
    words: list[str], where: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["measure.py", *words])
    assert run_script(measure.main) == 1
    told = capsys.readouterr()
    assert where in told.err and "->" in told.err and told.out == ""


def test_the_sheet_shows_every_word_and_picture() -> None:
    scenes = sheet_scenes()
    for part, words in zip(("shape", "colour", "background", "place", "size"),
                           (SHAPES, COLOURS, BACKGROUNDS, PLACES, SIZES), strict=True):  # fmt: skip
        assert {getattr(scene, part) for scene in scenes} == set(words)
    shades = np.linspace(0, 250, len(scenes)).astype(np.uint8)
    pictures = np.broadcast_to(shades[:, None, None, None], (len(scenes), 64, 64, 3))
    others = [np.full((64, 128, 3), (9, 200, 9), np.uint8), np.full((96, 64, 3), (200, 9, 9), np.uint8)]
    sheet = np.asarray(lay_out(pictures, others, ["one", "two"]))
    seen = set(map(tuple, np.unique(sheet.reshape(-1, 3), axis=0).tolist()))
    assert {(int(shade),) * 3 for shade in shades} | {(9, 200, 9), (200, 9, 9)} <= seen
    assert np.array_equal(sheet[0, 0], sheet[-1, -1])  # a margin of paper on both sides


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def readme_rows() -> list[dict[str, str]]:
    """The rows "all" of both tables, by the words in their heads."""
    text = README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    tables = [table.splitlines() for table in text.split("\n\n") if table.strip().startswith("|")]
    rows = []
    for head, _, all_of_them, *_ in tables:
        assert cells_of(all_of_them)[0] == "**all**"
        rows.append(dict(zip(cells_of(head), cells_of(all_of_them), strict=True)))
    return rows


def test_the_readme_s_figures_meet_the_bounds() -> None:
    drawn, kept = readme_rows()
    assert int(drawn["pictures"]) >= 500 and int(kept["pictures"]) >= 700
    for part, bound in BOUNDS.items():
        assert float(drawn[part].rstrip("%")) >= 100 * bound, part
    assert float(kept["PSNR"].removesuffix(" dB")) >= VAE_BOUND
    for part in ("judge: colour", "background", "shape", "place", "all four"):
        assert float(kept[part].rstrip("%")) >= 100 * JUDGE_BOUND, part


def test_the_readme_s_figures_are_of_this_model() -> None:
    """After another build: python examples/toy_world/measure.py --readme"""
    found = re.search(r"the model `([0-9a-f]+)`", README.read_text(encoding="utf-8"))
    assert found is not None and found.group(1) == fingerprint(MODEL)


def test_the_readme_shows_a_small_sheet() -> None:
    sheet = README.parent / SHEET
    assert f"]({SHEET})" in README.read_text(encoding="utf-8")
    assert sheet.stat().st_size <= LARGEST_SHEET
    with Image.open(sheet) as picture:
        assert picture.width >= 800


def test_the_readme_names_files_and_words_that_are_there() -> None:
    text = README.read_text(encoding="utf-8")
    for name in re.findall(r"\]\(([^)]+)\)", text):
        assert (README.parent / name.partition("#")[0]).is_file(), name
    for word in (*SHAPES, *COLOURS, *BACKGROUNDS, *PLACES, *SIZES):
        assert re.search(rf"\b{word}\b", text), word


def test_most_of_some_prompts_is_drawn_right() -> None:
    """A short look; the bounds of the README are measured below."""
    found = draw_and_judge(base_model(), [one for one in requests(32) if one.size == (64, 64)], WAY, plain_judge())
    assert len(found) == 16
    assert share(found, *THREE) >= 0.87


@pytest.mark.slow
def test_the_model_draws_what_prompts_say() -> None:
    found = draw_and_judge(base_model(), requests(560, seed=1), WAY, plain_judge())
    figures = {part: share(found, part) for part in THREE} | {"all three": share(found, *THREE)}
    assert all(figures[part] >= bound for part, bound in BOUNDS.items()), (figures, weak_words(found))


@pytest.mark.slow
def test_the_vae_keeps_the_pictures() -> None:
    assert decibels_of(through_vae(base_model(), 700, plain_judge(), seed=2)) >= VAE_BOUND


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_script_measures_and_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, sheet = tmp_path / "README.md", tmp_path / "sheet.png"
    page.write_text(f"above\n{BEGIN}\n{END}\nbelow\n", encoding="utf-8")
    monkeypatch.setattr(measure, "README", page)
    words = ["--count", "14", "--vae_count", "10", "--readme", "--sheet", str(sheet)]
    monkeypatch.setattr(sys, "argv", ["measure.py", *words])
    assert run_script(measure.main) == 0
    told = capsys.readouterr().out
    written = page.read_text(encoding="utf-8")
    assert "| **all** | 14 |" in told and "| **all** | 14 |" in written and "| **all** | 10 |" in written
    assert written.startswith("above\n") and written.endswith("below\n")
    assert sheet.stat().st_size <= LARGEST_SHEET

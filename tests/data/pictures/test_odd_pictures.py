"""A folder with one oddity per file: each is told for what it is, and none stops the others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from library.core.errors import UserError
from library.core.sizes import Size
from library.data.captions.caption_files import DEFAULT_CAPTION_EXTENSIONS, find_caption
from library.data.pictures.images import examine, list_images, load_picture, other_pictures, why_not_read
from tests.data.pictures.odd_pictures import CAPTION, Expected, Verdict, write_odd_folder

# pytest shows warnings that the library keeps off the console
pytestmark = pytest.mark.filterwarnings("ignore:Invalid APNG")
TRAINED = (Verdict.NOTED, Verdict.FINE, Verdict.CAPTION_REFUSED, Verdict.CAPTION_MISSING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("odd") / "pictures"


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Expected]:
    return write_odd_folder(folder)


def names_with(expected: dict[str, Expected], *verdicts: Verdict) -> list[str]:
    return sorted(name for name, entry in expected.items() if entry.verdict in verdicts)


def test_there_are_forty_defects(expected: dict[str, Expected]) -> None:
    assert len(names_with(expected, *set(Verdict) - {Verdict.FINE})) >= 40


def test_every_file_is_listed_where_it_belongs(folder: Path, expected: dict[str, Expected]) -> None:
    assert list_images(folder) == names_with(expected, Verdict.REFUSED, *TRAINED)
    assert other_pictures(folder) == names_with(expected, Verdict.UNREAD)
    for name in names_with(expected, Verdict.UNREAD):
        assert expected[name].word in why_not_read(name)


def test_every_picture_is_judged(folder: Path, expected: dict[str, Expected]) -> None:
    for name in list_images(folder):
        entry, found = expected[name], examine(folder / name)
        if entry.verdict is Verdict.REFUSED:
            assert found.size is None and entry.word in (found.problem or ""), (name, found)
        else:
            word = entry.word if entry.verdict is Verdict.NOTED else None
            assert found.problem is None and found.size is not None, (name, found)
            assert (found.note is None) if word is None else word in (found.note or ""), (name, found)


def test_loading_agrees_with_the_judgement(folder: Path, expected: dict[str, Expected]) -> None:
    for name in list_images(folder):
        found = examine(folder / name)
        if found.size is not None:
            picture = load_picture(folder / name, found.size, (0, 0, *found.size))
            assert picture.pixels.shape == (found.size.height, found.size.width, 3), name
            assert (picture.alpha is not None) == found.has_alpha, name
        else:
            with pytest.raises(UserError) as caught:
                load_picture(folder / name, Size(8, 8), (0, 0, 8, 8))
            problem = caught.value.problems[0]
            assert expected[name].word in problem.what and problem.where == str(folder / name)


def test_reasons_differ_and_fit_one_line(folder: Path, expected: dict[str, Expected]) -> None:
    reasons = {name: examine(folder / name).problem or "" for name in names_with(expected, Verdict.REFUSED)}
    assert all("\n" not in reason and "Traceback" not in reason and len(reason) < 200 for reason in reasons.values())
    same = {"cut_off.png", "cut_off.jpg", "cut_off.webp", "cut_off.bmp", "header_only.png"}
    told = [reason for name, reason in reasons.items() if name not in same]
    assert len(set(told)) == len(told)


def test_every_caption_is_judged(folder: Path, expected: dict[str, Expected]) -> None:
    for name in names_with(expected, *TRAINED):
        entry = expected[name]
        if entry.verdict is Verdict.CAPTION_REFUSED:
            with pytest.raises(UserError, match=entry.word):
                find_caption(folder / name, DEFAULT_CAPTION_EXTENSIONS)
        else:
            caption = find_caption(folder / name, DEFAULT_CAPTION_EXTENSIONS)
            assert caption == (None if entry.verdict is Verdict.CAPTION_MISSING else CAPTION), name


def test_nothing_is_printed(folder: Path, expected: dict[str, Expected]) -> None:
    """Pillow's warnings carry no file name and would only frighten."""
    script = (
        "import sys; from pathlib import Path; from library.data.pictures.images import examine, list_images\n"
        "folder = Path(sys.argv[1])\n"
        "for name in list_images(folder): examine(folder / name)"
    )
    run = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")

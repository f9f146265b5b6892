"""The report page: whole without a network, safe with any text, and it shows what it should in a real browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from library.core.errors import Problem
from library.data.augment import Augmentations
from library.data.captions.caption_changes import CaptionChanges
from library.data.report import report_page
from library.data.report.dataset_report import Source, report_of_problems, report_on
from library.data.report.report_page import language_of, page_of, text_of
from tests.data.data_helpers import index_of, make_dataset, make_subset, save_picture
from tests.data.report.test_dataset_report import source_of
from tests.tools.browser import NoBrowserError, Tab, open_tab

EVIL = '"><script>window.evil=1</script><img src="http://127.0.0.1:9/x" onerror="window.evil=1">'
BAR, UNDERFILLED_BAR = (0x2F, 0x6F, 0xDB), (0xE0, 0x8A, 0x1E)
DARK_BAR, LIGHT_PAGE, DARK_PAGE = (0x6E, 0xA0, 0xFF), (0xF6, 0xF5, 0xF2), (0x16, 0x17, 0x18)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Pictures of many shapes, with odd names and captions in several scripts."""
    root = tmp_path_factory.mktemp("pictures")
    captions = ["1girl, 猫耳, かわいい", "고양이, 모자", "猫, 帽子", EVIL, "a & b", "tabs\tand\x07bells"]
    sizes = [(64, 64), (60, 60), (128, 32), (32, 128), (90, 50), (50, 90), (300, 40)]
    for number, size in enumerate(sizes):
        save_picture(root / "a" / f"{number}.png", size, number)
        (root / "a" / f"{number}.txt").write_text(captions[number % len(captions)], encoding="utf-8")
    save_picture(root / "a" / "<i>name & more.png")
    Image.fromarray(np.full((64, 64, 4), 90, dtype=np.uint8)).save(root / "b_clear.png")
    Image.fromarray(np.full((64, 64, 4), 90, dtype=np.uint8)).save(root / "a" / "clear.png")
    changes = CaptionChanges(shuffle=True)
    subset = make_subset(
        root / "a", caption_changes=changes, augmentations=Augmentations(flip=True), alpha_mask=True, num_repeats=2
    )
    return source_of(index_of(make_dataset(subset, batch_size=3)))


@pytest.fixture(scope="module")
def page(source: Source) -> str:
    problem = Problem(f"it is <b>broken</b> {EVIL}", "b/\u202egnp.exe", "mend it")
    return page_of(report_on(source, [problem]), source)


class Links(HTMLParser):
    """Everything in a page that a browser would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "data", "srcset", "action")]
        assert not [name for name, _ in attrs if name.startswith("on")]


def test_nothing_is_loaded_from_outside(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.found and all(re.match(r"data:image/(jpeg|png);base64,", link) for link in links.found)
    assert links.tags.count("script") == 1 and "link" not in links.tags and "iframe" not in links.tags
    assert "url(" not in page and "@import" not in page


def test_thumbnails_are_small_pictures(page: str) -> None:
    import base64

    coded = re.findall(r"data:image/\w+;base64,([\w+/=]+)", page)
    assert len(coded) > 9
    for content in coded:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            image.load()
            assert max(image.size) <= 320  # a picture and its mask side by side


def test_texts_are_escaped(page: str) -> None:
    assert EVIL not in page and text_of(EVIL) in page
    assert "&lt;i&gt;name &amp; more.png" in page and "<i>" not in page
    assert "<b>broken</b>" not in page
    assert "\u202e" not in page and r"\u202e" in page and "\x07" not in page
    assert text_of("a\udcffb") == r"a\udcffb"
    page.encode("utf-8")


def test_captions_name_their_language(page: str) -> None:
    assert [language_of(text) for text in ("a cat", "猫耳、かわいい", "고양이 猫", "猫")] == ["", "ja", "ko", "zh"]
    assert 'lang="ja">1girl' in page and 'lang="ko"' in page and 'lang="zh"' in page


def test_every_fact_stands_on_the_page(page: str, source: Source) -> None:
    report = report_on(source)
    for bucket in report.buckets:
        assert f'data-bucket="{bucket.size}"' in page
    for image in report.images:
        assert f"<b>{image.size}</b> → {image.resized} → bucket <b>{image.bucket}</b>" in page
        assert text_of(image.caption) in page
    for warning in report.warnings:
        assert text_of(warning) in page
    assert page.count('<article class="picture">') == len(report.images)
    assert page.count('<section class="batch">') == len(report.batches)
    assert page.count("<li><p class") == 3 * len(report.images)  # draws
    assert "1 problem to mend" in page and "mend it" in page


def test_many_pictures_are_limited_with_a_sentence(source: Source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_page, "MOST_PICTURES", 5)
    monkeypatch.setattr(report_page, "MOST_THUMBNAILS", 2)
    page = page_of(report_on(source), source)
    assert page.count('<article class="picture">') == 5
    assert "Here are the first 5 of 9; the JSON file (--json) holds them all." in page
    assert "The first 2 are shown small; the others are told in words." in page
    assert page.count("<svg viewBox") == 2


def test_a_picture_that_has_gone_is_said_to_be_unreadable(tmp_path: Path) -> None:
    path = save_picture(tmp_path / "a.png")
    gone = source_of(index_of(make_dataset(make_subset(tmp_path))))
    path.unlink()
    assert page_of(report_on(gone), gone).count("cannot be read") == 2


def test_problems_without_pictures_make_a_page() -> None:
    page = page_of(report_of_problems([Problem("no pictures are given", "command line", "give some")]), None)
    assert "no pictures are given" in page and "What has to be mended" in page


# --- in a browser -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tab() -> Iterator[Tab]:
    try:
        with open_tab() as opened:
            yield opened
    except NoBrowserError as error:
        pytest.skip(str(error))


def share_of(colour: tuple[int, int, int], picture: np.ndarray) -> float:
    return float((np.abs(picture.astype(int) - colour).max(axis=2) <= 2).mean())


def seen(tab: Tab) -> np.ndarray:
    with Image.open(io.BytesIO(tab.screenshot())) as image:
        return np.asarray(image.convert("RGB"))


def test_a_browser_shows_every_bucket(tab: Tab, page: str, source: Source, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab.use_dark_colours(False)
    tab.open(file)
    assert [link for link in tab.requests() if not link.startswith("data:")] == [file.as_uri()]
    assert tab.complaints() == [] and tab.value("window.evil === undefined")
    screen = seen(tab)
    rows = tab.value(
        "[...document.querySelectorAll('#buckets [data-bucket]')].map(row => {"
        " const bar = row.querySelector('.fill').getBoundingClientRect(), name = row.querySelector('.name');"
        " return [name.innerText, name.checkVisibility(), row.innerText, bar.x, bar.y, bar.width, bar.height] })"
    )
    buckets = {str(bucket.size): bucket for bucket in report_on(source).buckets}
    assert len(buckets) > 4 and sorted(row[0] for row in rows) == sorted(buckets)
    longest = max(row[5] for row in rows)
    for name, visible, text, x, y, width, height in rows:
        bucket = buckets[name]
        assert visible and f"{bucket.uses} use" in text and f"{bucket.pictures} picture" in text
        assert width == pytest.approx(longest * bucket.uses / max(b.uses for b in buckets.values()), rel=0.02)
        middle = screen[round(y + height / 2), round(x + width / 2)]
        assert tuple(middle) == (UNDERFILLED_BAR if bucket.underfilled else BAR)
        assert ("under-filled" in text) == bucket.underfilled
    assert {bucket.underfilled for bucket in buckets.values()} == {True, False}
    assert share_of(LIGHT_PAGE, screen) > 0.1
    assert tab.value("[...document.images].every(image => image.naturalWidth > 0)")
    assert tab.value("document.documentElement.scrollWidth <= innerWidth")


def test_a_browser_shows_it_dark_and_finds_pictures(tab: Tab, page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab.use_dark_colours(True)
    tab.open(file)
    screen = seen(tab)
    assert share_of(DARK_PAGE, screen) > 0.1 and share_of(LIGHT_PAGE, screen) < 0.01
    assert share_of(DARK_BAR, screen) > 0
    tab.value("words.value = '猫耳 64X64'; words.dispatchEvent(new Event('input'))")
    assert tab.value("[...document.querySelectorAll('.picture:not([hidden]) h3')].map(h => h.innerText)") == ["0.png"]
    assert tab.value("shown.innerText") == "1 of 9 shown"


def test_a_narrow_screen_needs_no_sideways_scrolling(tab: Tab, page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    tab.call("Emulation.setDeviceMetricsOverride", width=390, height=800, deviceScaleFactor=1, mobile=False)
    tab.open(file)
    assert tab.value("[innerWidth, document.documentElement.scrollWidth]") == [390, 390]

"""library/preparation/duplicates.py: changed copies are found, and different pictures are not called copies."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from library.core.errors import Problems, UserError
from library.data.pictures.folders import list_folders
from library.preparation.duplicates import Found, Group, Kind, Search, find_duplicates
from library.preparation.duplicates_told import as_json_values, captions_differ, lines_of, page_of
from tests.data.data_helpers import save_picture

ENDINGS = (".txt", ".caption")


def search(*folders: Path, mirrored: bool = False, threshold: int = 12) -> Found:
    problems = Problems()
    listed = list(list_folders([str(folder) for folder in folders], False, problems))
    problems.raise_if_any()
    return find_duplicates(listed, Search(threshold, mirrored, 2))


def names(group: Group) -> set[str]:
    return {picture.path.name for picture in group.pictures}


def kinds(found: Found) -> dict[str, Kind]:
    return {copy.picture.path.name: copy.kind for group in found.groups for copy in group.copies}


def compressed(picture: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def changed(picture: Image.Image) -> dict[str, Image.Image]:
    """The changes that the issue names, one at a time and together."""
    width, height = picture.size
    inner = (round(width * 0.025), round(height * 0.025), round(width * 0.975), round(height * 0.975))
    brighter = picture.point(lambda value: min(255, round(value * 1.1)))
    return {
        "halved": picture.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        "compressed": compressed(picture, 30),
        "cropped": picture.crop(inner),
        "one_side": picture.crop((round(width * 0.05), 0, width, height)),
        "brighter": brighter,
        "all": compressed(brighter.crop(inner).resize((width * 2 // 3, height * 2 // 3)), 60),
    }


def write_changed(folder: Path, pictures: Iterable[tuple[str, Image.Image]]) -> list[set[str]]:
    """Writes pictures and their changed selves; the groups to be found."""
    folder.mkdir(parents=True, exist_ok=True)
    groups = []
    for stem, picture in pictures:
        own = {"": picture, **changed(picture)}
        for change, image in own.items():
            image.save(folder / f"{stem}-{change}.png", compress_level=1)
        groups.append({f"{stem}-{change}.png" for change in own})
    return groups


def figure(seed: int, mouth: bool = False) -> Image.Image:
    """A drawn person on white; `seed` chooses the colours, the hair, and where an arm points."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (300, 440), "white")
    draw = ImageDraw.Draw(image)
    hair, dress, eyes = (tuple(int(level) for level in rng.integers(0, 256, 3)) for _ in range(3))
    long, reach = int(rng.integers(60, 150)), int(rng.integers(-80, 80))
    draw.ellipse((90, 60, 210, 160 + long), fill=hair, outline="black")
    draw.polygon([(90, 430), (210, 430), (175, 220), (125, 220)], fill=dress, outline="black", width=2)
    draw.ellipse((105, 80, 195, 205), fill=(255, 224, 200), outline="black", width=2)
    draw.line((165, 240, 240, 300 + reach), fill=dress, width=18)
    for at in (130, 170):
        draw.ellipse((at - 9, 125, at + 9, 145), fill=eyes)
    if mouth:
        draw.ellipse((135, 165, 165, 190), fill=(150, 20, 40))
    return image


def test_changed_photographs_are_found_and_different_ones_are_not(photos: Path, tmp_path: Path) -> None:
    assert search(photos).groups == []
    files = sorted(path for path in photos.iterdir() if path.suffix != ".txt" and path.suffix != ".md")
    assert len(files) == 15
    expected = write_changed(tmp_path / "p", ((path.stem, Image.open(path).convert("RGB")) for path in files))
    found = search(tmp_path / "p")
    assert [names(group) for group in found.groups] == expected and not found.unreadable
    assert {kind for kind in kinds(found).values()} == {Kind.NEAR}
    assert all("halved" not in group.keep.path.name for group in found.groups)


def test_drawn_figures_are_told_apart(tmp_path: Path) -> None:
    expected = write_changed(tmp_path / "p", ((f"{seed:02}", figure(seed)) for seed in range(7)))
    assert [names(group) for group in search(tmp_path / "p").groups] == expected
    (tmp_path / "faces").mkdir()
    for seed in range(7):
        figure(seed).save(tmp_path / "faces" / f"{seed}.png")
        figure(seed, mouth=True).save(tmp_path / "faces" / f"{seed}-open.png")
    assert search(tmp_path / "faces", threshold=20).groups == []


def portrait(eyes: str = "open", mouth: str = "closed", arm: int = 0, words: str = "") -> Image.Image:
    """A drawn face of 512 pixels, as artists give it in variants that differ in one place."""
    image = Image.new("RGB", (512, 512), "white")
    draw = ImageDraw.Draw(image)
    skin = (255, 225, 205)
    draw.ellipse((120, 60, 392, 380), fill=(40, 30, 30))
    draw.ellipse((160, 110, 352, 340), fill=skin, outline="black")
    for at in (210, 302):
        if eyes == "closed":
            draw.line((at - 18, 212, at + 18, 212), fill="black", width=4)
        else:
            draw.ellipse((at - 18, 190, at + 18, 230), fill="white", outline="black")
            draw.ellipse((at - 8, 200, at + 8, 225), fill=(40, 80, 200) if eyes == "open" else (200, 40, 40))
    if mouth == "closed":
        draw.line((236, 290, 276, 290), fill="black", width=3)
    else:
        draw.arc((226, 265, 286, 305), 20, 160, fill="black", width=3)
    draw.polygon([(160, 512), (200, 350), (312, 350), (352, 512)], fill=(200, 40, 60))
    if arm:
        draw.line((340, 400, 440, 400 + arm), fill=skin, width=24)
    draw.text((20, 20), words, fill="black", font_size=28)
    return image


def icon(number: int) -> Image.Image:
    image = Image.new("RGB", (512, 512), "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((200, 200, 312, 312), fill="black")
    draw.text((240, 230), str(number), fill="white", font_size=40)
    return image


VARIANTS = {
    "base": portrait(),
    "closed": portrait(eyes="closed"),
    "red": portrait(eyes="red"),
    "smile": portrait(mouth="smile"),
    "raised": portrait(arm=-100),
    "lowered": portrait(arm=70),
    "words": portrait(words="Hello, world"),
    "other_words": portrait(words="Goodbye all"),
    "icon0": icon(0),
    "icon2": icon(2),
}


def test_pictures_that_differ_in_one_place_are_no_copies_and_their_changed_selves_are(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name, picture in VARIANTS.items():
        picture.save(tmp_path / "p" / f"{name}.png")
    assert search(tmp_path / "p").groups == []
    groups = write_changed(tmp_path / "c", [(name, VARIANTS[name]) for name in ("icon0", "raised", "words")])
    assert [names(group) for group in search(tmp_path / "c").groups] == groups


def test_edits_of_photographs_are_no_copies(photos: Path, tmp_path: Path) -> None:
    for name in ("cat", "astronaut", "coffee"):
        picture = Image.open(photos / f"{name}.jpg").convert("RGB")
        picture.save(tmp_path / f"{name}.png")
        draw = ImageDraw.Draw(picture)
        draw.text((picture.width // 2, picture.height * 2 // 3), "@artist", fill="white", font_size=16)
        compressed(picture, 60).save(tmp_path / f"{name}-signed.png")
    assert search(tmp_path).groups == []


def test_small_crops_of_line_drawings_are_laid_over_each_other_exactly(tmp_path: Path) -> None:
    picture = portrait(words="Hello, world")
    picture.save(tmp_path / "whole.png")
    for cut in (1, 2, 4, 9, 17):
        picture.crop((cut, 0, 512, 512 - cut)).save(tmp_path / f"cut{cut:02}.png")
    (group,) = search(tmp_path).groups
    assert len(group.copies) == 5 and group.keep.path.name == "whole.png"


def test_a_copy_whose_partner_was_taken_by_another_is_told_beside_it(photos: Path, tmp_path: Path) -> None:
    picture = Image.open(photos / "coins.png").convert("RGB")
    picture.save(tmp_path / "own.png")
    picture.crop((0, 0, picture.width, round(picture.height * 0.9))).save(tmp_path / "cut.jpg", quality=90)
    ImageOps.expand(picture, border=picture.width // 40, fill="white").save(tmp_path / "bordered.jpg")
    (group,) = search(tmp_path).groups
    told = {copy.picture.path.name: (copy.kind, copy.like.path.name) for copy in group.copies}
    assert group.keep.path.name == "bordered.jpg"
    assert told == {"own.png": (Kind.NEAR, "bordered.jpg"), "cut.jpg": (Kind.NEAR, "own.png")}
    assert any(line.endswith(f"near copy as {tmp_path / 'own.png'}") for line in lines_of(search(tmp_path), ENDINGS))


def test_no_room_for_small_versions_is_told_with_the_folder(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(UserError, match="cannot be kept there") as caught:
        search(photos)
    assert "gone" in caught.value.problems[0].where and "TMPDIR" in caught.value.problems[0].fix


def test_exact_copies_are_told_as_such(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "a.jpg")
    shutil.copy(photos / "cat.jpg", tmp_path / "b.jpg")
    cat = Image.open(photos / "cat.jpg")
    cat.save(tmp_path / "c.png")
    exif = Image.Exif()
    exif[0x0112] = 8
    cat.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png", exif=exif)
    almost = np.array(cat)
    almost[100, 100] ^= 1
    Image.fromarray(almost).save(tmp_path / "almost.png")
    cat.putalpha(Image.linear_gradient("L").resize(cat.size).point(lambda level: 255 - level // 64))
    cat.save(tmp_path / "see_through.png")
    found = search(tmp_path)
    assert len(found.groups) == 1 and names(found.groups[0]) == {path.name for path in tmp_path.iterdir()}
    told = {copy.picture.path.name: (copy.kind, copy.like.path.name) for copy in found.groups[0].copies}
    keep = found.groups[0].keep.path.name
    assert keep == "see_through.png"  # as many pixels, and the longest file
    assert told["b.jpg"] == (Kind.SAME_FILE, "a.jpg")
    assert told["c.png"] == (Kind.SAME_PIXELS, "a.jpg") == told["turned.png"]
    assert told["a.jpg"] == (Kind.NEAR, keep) == told["almost.png"]


def test_the_largest_then_the_least_compressed_then_the_first_name_stays(photos: Path, tmp_path: Path) -> None:
    cat = Image.open(photos / "cat.jpg")
    cat.resize((300, 200)).save(tmp_path / "a.png")
    for name in ("d", "c"):
        cat.save(tmp_path / f"{name}.jpg", quality=90)
    cat.save(tmp_path / "b.jpg", quality=40)
    found = search(tmp_path)
    assert [group.keep.path.name for group in found.groups] == ["c.jpg"]
    assert [copy.picture.path.name for copy in found.groups[0].copies] == ["a.png", "b.jpg", "d.jpg"]


def test_mirrored_copies_are_found_when_asked_for(photos: Path, tmp_path: Path) -> None:
    for name in ("cat", "astronaut", "pagoda"):
        picture = Image.open(photos / f"{name}.jpg")
        picture.save(tmp_path / f"{name}.png")
        small = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT).resize((picture.width // 2, picture.height // 2))
        small.crop((5, 0, small.width, small.height - 3)).save(tmp_path / f"{name}-mirrored.png")
    assert search(tmp_path).groups == []
    found = search(tmp_path, mirrored=True)
    assert [names(group) for group in found.groups] == [
        {f"{name}.png", f"{name}-mirrored.png"} for name in ("astronaut", "cat", "pagoda")
    ]
    assert set(kinds(found).values()) == {Kind.MIRRORED}
    assert search(photos, mirrored=True).groups == []


def test_a_chain_of_small_moves_does_not_become_one_group(photos: Path, tmp_path: Path) -> None:
    picture = Image.open(photos / "cat.jpg").resize((900, 600))
    for number in range(16):  # a camera that pans by 4 % from picture to picture
        picture.crop((24 * number, 0, 24 * number + 500, 600)).save(tmp_path / f"{number:02}.png")
    found = search(tmp_path)
    groups = [sorted(int(name[:2]) for name in names(group)) for group in found.groups]
    assert groups and max(max(group) - min(group) for group in groups) <= 6
    kept = [group.keep.path for group in found.groups]
    (tmp_path / "kept").mkdir()
    copies = {copy.picture.path for group in found.groups for copy in group.copies}
    for path in tmp_path.glob("*.png"):
        if path not in copies:
            shutil.copy(path, tmp_path / "kept")
    assert len(kept) >= 2 and search(tmp_path / "kept").groups == []


def test_a_file_that_is_reached_twice_counts_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    shutil.copy(photos / "cat.jpg", tmp_path / "a" / "cat.jpg")
    (tmp_path / "a" / "link.jpg").symlink_to(tmp_path / "a" / "cat.jpg")
    os.link(tmp_path / "a" / "cat.jpg", tmp_path / "a" / "hard.jpg")
    (tmp_path / "b").symlink_to(tmp_path / "a", target_is_directory=True)
    found = search(tmp_path / "a", tmp_path / "b", tmp_path / "a" / ".." / "a")
    assert found.count == 1 and not found.groups


def test_pictures_of_one_colour(tmp_path: Path) -> None:
    for name, colour, size in (("white", 255, 90), ("black", 0, 90), ("small_white", 255, 50), ("grey", 128, 90)):
        Image.new("L", (size, size), colour).save(tmp_path / f"{name}.png")
    save_picture(tmp_path / "field.png", (90, 90), 1)
    found = search(tmp_path)
    assert [names(group) for group in found.groups] == [{"white.png", "small_white.png"}]


def test_the_same_words_in_another_order_of_folders(photos: Path, tmp_path: Path) -> None:
    for folder, number in (("x", 1), ("y", 2)):
        (tmp_path / folder).mkdir()
        shutil.copy(photos / "cat.jpg", tmp_path / folder / f"{number}.jpg")
        shutil.copy(photos / "cat.jpg", tmp_path / folder / f"{number + 2}.jpg")
    there, back = search(tmp_path / "x", tmp_path / "y"), search(tmp_path / "y", tmp_path / "x")
    assert [names(group) for group in there.groups] == [{"1.jpg", "2.jpg", "3.jpg", "4.jpg"}]
    assert there.groups[0].keep == back.groups[0].keep and there.groups[0].keep.path.parent.name == "x"
    assert list(lines_of(there, ENDINGS)) == list(lines_of(search(tmp_path / "x", tmp_path / "y"), ENDINGS))


def test_what_cannot_be_read_is_told_and_the_others_are_compared(photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "cat.jpg", tmp_path / "1.jpg")
    (tmp_path / "2.jpg").write_bytes((photos / "cat.jpg").read_bytes()[:2000])
    (tmp_path / "3.jpg").symlink_to(tmp_path / "nothing.jpg")
    shutil.copy(photos / "cat.jpg", tmp_path / "4.jpg")
    found = search(tmp_path)
    assert [Path(problem.where).name for problem in found.unreadable] == ["2.jpg", "3.jpg"]
    assert [names(group) for group in found.groups] == [{"1.jpg", "4.jpg"}] and found.count == 2


def test_captions_of_copies_are_compared(photos: Path, tmp_path: Path) -> None:
    for stem in "abcd":
        shutil.copy(photos / ("cat.jpg" if stem in "ab" else "pagoda.jpg"), tmp_path / f"{stem}.jpg")
    (tmp_path / "a.txt").write_text("a ginger cat", encoding="utf-8")
    (tmp_path / "b.txt").write_text("猫\x1b[2J<script>", encoding="utf-8")
    (tmp_path / "c.txt").write_text("a pagoda", encoding="utf-8")
    (tmp_path / "d.txt").write_text("a pagoda \r\n", encoding="utf-8")
    found = search(tmp_path)
    assert [captions_differ(group, ENDINGS) for group in found.groups] == [True, False]
    told = "\n".join(lines_of(found, ENDINGS))
    assert told.count("captions differ") == 1 and "a ginger cat" in told and "猫" in told and "\x1b" not in told
    assert "a pagoda" not in told
    values = as_json_values(found, ENDINGS)
    assert values["groups"][0]["copies"][0]["captions"] == {".txt": "猫\x1b[2J<script>"}
    page = page_of(found, ENDINGS)
    assert "<script" not in page and "&lt;script&gt;" in page and "\x1b" not in page
    assert page.count("data:image/jpeg;base64,") == 4 and page.count("captions differ") == 1
    (tmp_path / "d.caption").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in "\n".join(lines_of(found, ENDINGS))


@pytest.mark.parametrize("threshold", [0, 32])
def test_exact_copies_do_not_depend_on_the_threshold(photos: Path, tmp_path: Path, threshold: int) -> None:
    shutil.copytree(photos, tmp_path / "a", ignore=shutil.ignore_patterns("*.txt", "*.md"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = search(tmp_path / "a", tmp_path / "b", threshold=threshold)
    assert len(found.groups) == 15 and set(kinds(found).values()) == {Kind.SAME_FILE}
    assert all(len(group.pictures) == 2 for group in found.groups)

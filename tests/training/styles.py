"""The three styles of describing pictures, each as the words of a command line, with and without regularisation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

CLASS_TOKENS, CAPTION_FILES, METADATA = "class tokens", "caption files", "metadata"
# style, and whether there are regularisation pictures
CASES = ((CLASS_TOKENS, True), (CAPTION_FILES, True), (METADATA, True), (CAPTION_FILES, False))
PICTURES = ("cat.jpg", "coins.png", "coffee.jpg")
SIZES = ("--resolution", "64", "--enable_bucket", "--min_bucket_reso", "32", "--bucket_reso_steps", "32")
_REG_PICTURES = ("gravel.jpg", "grass.jpg")


def style_words(style: str, word: str, photos: Path, root: Path, with_reg: bool = False) -> list[str]:
    """The words for three pictures whose captions all hold `word`, made below `root`; with two of regularisation."""
    words = list(SIZES)
    if with_reg:
        reg = root / "reg" / "1_ground"
        reg.mkdir(parents=True)
        for name in _REG_PICTURES:
            shutil.copy(photos / name, reg)
        words += ["--reg_data_dir", str(reg.parent)]
    folder = root / (f"data/2_{word} thing" if style == CLASS_TOKENS else "pictures")
    folder.mkdir(parents=True)
    for name in PICTURES:
        shutil.copy(photos / name, folder)
    captions = {name: f"{word}, picture {number}" for number, name in enumerate(PICTURES)}
    if style == CLASS_TOKENS:
        return [*words, "--train_data_dir", str(folder.parent)]
    if style == CAPTION_FILES:
        for name, caption in captions.items():
            (folder / name).with_suffix(".caption").write_text(caption, encoding="utf-8")
        return [*words, "--train_data_dir", str(folder)]
    file = root / "meta.json"
    entries = {Path(name).stem: {"caption": caption, "tags": "a, b"} for name, caption in captions.items()}
    file.write_text(json.dumps(entries), encoding="utf-8")
    return [*words, "--train_data_dir", str(folder), "--in_json", str(file)]

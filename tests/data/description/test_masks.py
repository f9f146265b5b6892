"""Masks that would not count, and a masked loss without masks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from library.core.errors import Problems
from library.data.description.config import Description, SubsetConfig, describe
from library.data.description.masks import check_masks
from library.options.data import DataOptions
from tests.data.data_helpers import make_dataset, make_subset, save_picture

PLAIN = make_subset(Path("plain"))
MASKED = make_subset(Path("pictures"), conditioning_data_dir=Path("masks"))
CLEAR = make_subset(Path("clear"), alpha_mask=True)


def told(masked_loss: bool, *subsets: SubsetConfig) -> list[str]:
    problems = Problems()
    check_masks(Description((make_dataset(*subsets),), ()), masked_loss, problems)
    return [f"{problem.where}: {problem.what}" for problem in problems]


def test_a_masked_loss_needs_masks_somewhere() -> None:
    assert told(True, PLAIN) == ["--masked_loss: no subset has masks"]
    assert told(True, PLAIN, MASKED) == told(True, PLAIN, CLEAR) == told(True, MASKED, CLEAR) == []


def test_masks_need_the_masked_loss_and_transparency_does_not() -> None:
    assert told(False, PLAIN, MASKED) == ["masks: conditioning_data_dir has no effect: the loss is not masked"]
    assert told(False, PLAIN, CLEAR) == []


def test_pictures_are_not_their_own_masks(tmp_path: Path) -> None:
    same = make_subset(tmp_path, conditioning_data_dir=tmp_path / "x" / "..")
    (tmp_path / "x").mkdir()
    (problem,) = told(True, same)
    assert "the folder of the pictures themselves" in problem


def test_the_key_is_read_from_subsets_alone(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    file = tmp_path / "data.toml"
    text = (
        f"[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '{tmp_path}'\nconditioning_data_dir = 'm'\n"
    )
    file.write_text(text, encoding="utf-8")
    options = DataOptions(dataset_config=str(file), min_bucket_reso=64)
    assert describe(options).datasets[0].subsets[0].conditioning_data_dir == Path("m")
    file.write_text("[general]\nconditioning_data_dir = 'm'\n" + text, encoding="utf-8")
    with pytest.raises(Exception, match=r"conditioning_data_dir stands at the wrong level"):
        describe(options)


def test_the_example_of_the_guide_is_understood(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[3] / "docs" / "noise_and_loss.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (tmp_path / "data.toml").write_text(example, encoding="utf-8")
    (dataset,) = describe(DataOptions(dataset_config=str(tmp_path / "data.toml"))).datasets
    (subset,) = dataset.subsets
    assert subset.image_dir == Path("pictures/mira") and subset.conditioning_data_dir == Path("pictures/mira_masks")

"""What is asked of masks must be asked in both places: where the pictures are described, and where the loss is."""

from __future__ import annotations

from library.core.errors import Problems
from library.data.description.config import Description

_KEY, _FLAG = "conditioning_data_dir", "--masked_loss"


def check_masks(description: Description, masked_loss: bool, problems: Problems) -> None:
    """Complains about masks that would not count, and about a masked loss without masks.

    Args:
        description: the datasets.
        masked_loss: `--masked_loss`.
        problems: receives what is wrong.
    """
    subsets = [subset for dataset in description.datasets for subset in dataset.subsets]
    has_folders = any(subset.conditioning_data_dir is not None for subset in subsets)
    if masked_loss and subsets and not has_folders and not any(subset.alpha_mask for subset in subsets):
        fix = f"give {_KEY} to a subset of the dataset file, or --alpha_mask for transparent pictures, or remove it"
        problems.add("no subset has masks", _FLAG, fix)
    for subset in subsets:
        folder = subset.conditioning_data_dir
        if folder is None:
            continue
        if not masked_loss:
            what = f"{_KEY} has no effect: the loss is not masked"
            problems.add(what, str(folder), f"give {_FLAG} as well, or remove it")
        if subset.image_dir is not None and subset.image_dir.resolve() == folder.resolve():
            what = f"{_KEY} is the folder of the pictures themselves"
            problems.add(what, str(folder), "put the masks into a folder of their own, under the names of the pictures")

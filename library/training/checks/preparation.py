"""The checks before latents are prepared: folders, metadata, pictures and the VAE. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from library.core.device import check_precision
from library.core.errors import Problem, Problems, UserError
from library.core.wording import some_of
from library.data.cache.cache_checks import LATENTS_FLAG, check_disk_cache
from library.data.description.config import Description, read_description
from library.data.index.finder import PictureFinder
from library.data.index.index import ImageIndex, build_index
from library.data.index.metadata import find_pictures
from library.data.index.scan import SKIP
from library.data.index.within import entries_within, is_full_path
from library.data.pictures.images import list_images
from library.data.placement import Placements, place_all
from library.models.hub import locate
from library.models.identify import identify
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.preparation import LatentPreparationOptions
from library.preparation.metadata_file import check_output, read_entries
from library.training.checks.base_model import find_vae
from library.training.prepared_way import VAE_PRECISION_OF

if TYPE_CHECKING:  # diffusers takes seconds to import
    from library.models.vae_source import VaeIdentity

Entries = Mapping[str, Mapping[str, Any]]

_NAMES_TOLD = 5
_MODEL = "MODEL"
_ORDER = "DIR [DIR …] IN_JSON OUT_JSON MODEL"
# what the shared checks say to those who train, in the words of this script
_OWN_WORDS = (
    ("or leave out --cache_latents_to_disk", "or keep no latents on disk (train with --cache_latents)"),
    (LATENTS_FLAG, "prepared latents"),
    ("--resolution (command line)", "--max_resolution"),
    ("--resolution", "--max_resolution"),
    (f"; --bad_images {SKIP} trains without such files", ""),
)


@dataclass(frozen=True)
class Preparation:
    """What was found to be in order.

    Attributes:
        entries: of the metadata file, all of them.
        index: the pictures of the entries in the folders.
        keys: the entry of each of these, by record.
        broken: keys of entries whose pictures cannot be read.
    """

    options: LatentPreparationOptions
    entries: Entries
    index: ImageIndex
    placements: Placements
    keys: tuple[str, ...]
    broken: tuple[str, ...]
    vae: VaeIdentity


def check_preparation(options: LatentPreparationOptions) -> Preparation:
    """Checks everything that can be wrong.

    Raises:
        UserError: with everything that was found.
    """
    problems = Problems()
    problems.attempt(lambda: check_precision(options.mixed_precision))
    check_output(Path(options.out_json), _ORDER, problems)
    vae = problems.attempt(lambda: _find_vae(options))
    folders = _check_folders(options, problems)
    pictures = None
    unclear = Problems()
    entries = read_entries(Path(options.in_json), unclear)
    if folders and not unclear:
        _check_keys(entries, folders, options, unclear)
    problems.extend(unclear)
    if folders and not unclear:
        pictures = problems.attempt(lambda: _check_pictures(options, folders))
    if problems or pictures is None or vae is None:
        raise UserError(_in_own_words(problem) for problem in problems)
    index, placements = pictures
    keys, broken = _keys_of(index, entries, Path(options.in_json))
    if elsewhere := _elsewhere(entries, folders):
        index = replace(index, notes=(*index.notes, f"{options.in_json}: {elsewhere}"))
    return Preparation(options, entries, index, placements, keys, broken, vae)


def _find_vae(options: LatentPreparationOptions) -> VaeIdentity:
    """The VAE of the model, or the one that is named instead; the model must be one either way."""
    problems = Problems()
    name = options.model_name_or_path
    identity = problems.attempt(lambda: identify(locate(name, _MODEL).path))
    if identity is not None and options.v2 and identity.family != "sd2":
        problems.add(
            "the model is Stable Diffusion 1.x", "--v2", f"leave --v2 out, or give a 2.x model instead of {name}"
        )
    found = None
    if options.vae is not None:
        found = problems.attempt(lambda: find_vae(str(options.vae), "--vae"))
    elif identity is not None:
        found = problems.attempt(lambda: find_vae(name, _MODEL))
    if problems or found is None:
        raise UserError(problems)
    return found[0]


def _check_folders(options: LatentPreparationOptions, problems: Problems) -> tuple[Path, ...]:
    """The folders; none where something is wrong with one of them."""
    found: dict[str, Path] = {}
    for name in options.train_data_dir:
        path = Path(name)
        if not path.is_dir():
            what = "is a file, a folder is needed" if path.exists() else "does not exist"
            fix = f"check the path; the order is {_ORDER}"
            problems.add(f"it {what} (looked for {path.absolute()})", name, fix)
            continue
        real = os.path.realpath(path)
        for other, earlier in found.items():
            shared = os.path.commonpath([real, other]) if Path(real).anchor == Path(other).anchor else ""
            if shared in (real, other):
                problems.add(f"it is, holds or lies in {earlier}, which is given too", name, "give the upper one alone")
        found[real] = path
    return tuple(found.values()) if len(found) == len(options.train_data_dir) else ()


def _check_keys(
    entries: Entries, folders: Sequence[Path], options: LatentPreparationOptions, problems: Problems
) -> None:
    """Keys must tell where their pictures are, and each folder must have some."""
    file = options.in_json
    relative = []
    if len(folders) > 1 or options.full_path:
        finder = PictureFinder(folders)  # paths from the working folder are clear, too
        relative = [key for key in entries if not is_full_path(key) and not finder.only_here(key)]
    if relative:
        told = _some(relative)
        if len(folders) > 1:
            what = f"{len(relative)} keys are no full paths, and several folders are given from which they could count"
            fix = "give the one folder from which they count, or merge again with --full_path"
        else:
            what = f"{len(relative)} keys are no full paths"
            fix = "leave --full_path out, or merge again with it"
        problems.add(f"{what}: {told}", f"{file}" if len(folders) > 1 else f"--full_path, {file}", fix)
        return
    seen: dict[str, Path] = {}
    for folder in folders:
        own = entries_within(entries, folder)
        if twice := [key for key in own if key in seen]:
            what = f"{len(twice)} entries lie in {seen[twice[0]]} as well, by a link: {_some(twice)}"
            problems.add(what, str(folder), "prepare one folder after the other")
        seen.update(dict.fromkeys(own, folder))
        if entries and not own:
            told = _some(list(entries))
            what = f"no entry of {file} names a picture in it; its keys are {told}"
            problems.add(what, str(folder), "give the folder that was merged, or merge this one into the file as well")


def _check_pictures(options: LatentPreparationOptions, folders: Sequence[Path]) -> tuple[ImageIndex, Placements]:
    """The pictures as a training from these entries sees them. UserError with all that is wrong."""
    problems = Problems()
    data = DataOptions(
        train_data_dir=str(folders[0]),
        in_json=options.in_json,
        resolution=options.max_resolution,
        enable_bucket=True,
        min_bucket_reso=options.min_bucket_reso,
        max_bucket_reso=options.max_bucket_reso,
        bucket_reso_steps=options.bucket_reso_steps,
        bucket_no_upscale=options.bucket_no_upscale,
        allow_missing_captions=True,
        flip_aug=options.flip_aug,
        alpha_mask=options.alpha_mask,
        bad_images=SKIP,
    )
    described = problems.attempt(lambda: read_description(data, problems))
    if problems or described is None:
        raise UserError(problems)
    index = build_index(_in_folders(described, folders), data.prior_loss_weight, data.bad_images)
    if options.alpha_mask and not index.has_alpha.any():
        fix = "leave --alpha_mask out, or give the folders with transparent pictures as well"
        problems.add("no picture has transparency", "--alpha_mask", fix)
    placements = place_all(index)
    caching = CachingOptions(cache_latents_to_disk=True, vae_precision=VAE_PRECISION_OF[options.mixed_precision])
    check_disk_cache(index, placements, problems, caching)
    problems.raise_if_any()
    # to open pictures takes as long here whatever is kept, and who trains is told then
    notes = [note for note in (*described.notes, *index.notes) if "--cache_info" not in note]
    notes += _without_entries(index, folders, options.recursive)
    notes = [note.replace("are not trained", "are not prepared") for note in notes]
    left_out = tuple(_in_own_words(problem) for problem in index.left_out)
    return replace(index, notes=tuple(notes), left_out=left_out), placements


def _elsewhere(entries: Entries, folders: Sequence[Path]) -> str | None:
    """What is told of entries that are passed over; None where all lie in the folders."""
    within = {key for folder in folders for key in entries_within(entries, folder)}
    outside = [key for key in entries if key not in within]
    return (
        f"{len(outside)} entries lie in none of the folders, and stay as they are: {_some(outside)}"
        if outside
        else None
    )


def _in_folders(description: Description, folders: Sequence[Path]) -> Description:
    """The pictures of each folder apart, as a metadata file may name others too; captions do not matter."""
    (dataset,) = description.datasets
    (subset,) = dataset.subsets
    subsets = tuple(replace(subset, image_dir=folder, only_within=True, caption_extensions=()) for folder in folders)
    return replace(description, datasets=(replace(dataset, subsets=subsets),))


def _without_entries(index: ImageIndex, folders: Sequence[Path], recursive: bool) -> Iterator[str]:
    """With `--recursive`: folders below that hold pictures, of which the metadata knows none."""
    if not recursive:
        return
    names = zip(index.names, index.subset.tolist(), strict=True)
    known = {os.path.realpath(index.roots[subset] / name.rpartition("/")[0]) for name, subset in names}
    for folder in folders:
        known.add(os.path.realpath(folder))  # the index tells of this one
        for part, below, _ in os.walk(folder):
            below.sort()
            others = [] if os.path.realpath(part) in known else list_images(Path(part))
            if others:
                what = f"{len(others)} pictures have no entry and are not prepared"
                yield f"{part}: {what}: {_some(others)}"


def _keys_of(index: ImageIndex, entries: Entries, file: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The key of each picture, and the keys whose pictures cannot be read."""
    found: dict[tuple[int, str], str] = {}
    for number, subset in enumerate(index.folders):
        if subset.image_dir is not None:
            keys: dict[str, str | None] = {key: key for key in entries_within(entries, subset.image_dir)}
            # in the place of its caption each picture has its key; what is wrong was told with the index
            listed = find_pictures(keys, file, subset.image_dir, Problems())
            found.update({(number, name): str(key) for name, key in listed.pictures})
    subsets = index.subset.tolist()
    keys_by_record = tuple(found.pop((subset, name)) for subset, name in zip(subsets, index.names, strict=True))
    return keys_by_record, tuple(found.values())


def _some(keys: Sequence[str]) -> str:
    return some_of(list(keys[:_NAMES_TOLD]), len(keys))


def _in_own_words(problem: Problem) -> Problem:
    what, where, fix = problem.what, problem.where, problem.fix
    for theirs, ours in _OWN_WORDS:
        where, fix = where.replace(theirs, ours), fix.replace(theirs, ours)
    return Problem(what, where, fix)

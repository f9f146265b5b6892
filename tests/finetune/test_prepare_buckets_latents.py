"""finetune/prepare_buckets_latents.py: the latents are those that training makes, and training finds them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import fine_tune
from finetune import prepare_buckets_latents
from library.core.atomic_io import temporary_name
from library.core.errors import Incomplete, UserError
from library.core.randomness import NO_EPOCH, generator
from library.core.sizes import Size
from library.data.pictures.images import load_picture, to_tensor
from library.models.identify import identify
from library.models.load import load_stable_diffusion
from library.training.prepared_way import PREPARED
from tests.data.data_helpers import save_picture
from tests.finetune.preparing import PICTURES, SIZES, contents, copy_pictures, latents_in, prepare, read, write_metadata
from tests.training.runs import ROOT, Tensors, assert_same, environment, run_here, run_script_in_processes

BY_HAND = ("--resolution", "64", "--enable_bucket", *SIZES[2:])
STEPS = ("--max_train_steps", "2", "--train_batch_size", "2")


def tune(model: Path, out: Path, *words: str) -> Tensors:
    """A short training by fine_tune.py; its U-Net."""
    from safetensors.torch import load_file

    base = ["--pretrained_model_name_or_path", str(model), "--output_dir", str(out), "--learning_rate", "1e-3"]
    fine_tune.main([*base, *words, *STEPS, "--max_data_loader_n_workers", "0"])
    return load_file(str(out / "last.safetensors"))


def complaint(error: pytest.ExceptionInfo[UserError]) -> str:
    return str(error.value)


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    return copy_pictures(photos, tmp_path / "写真 data")


@pytest.fixture
def metadata(folder: Path, tmp_path: Path) -> Path:
    """Relative keys of every kind."""
    return write_metadata(tmp_path / "meta_clean.json", ("cat", "coins.png", "coffee", "rocket.jpg"))


def test_latents_are_those_of_the_models_vae(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Diffusers' encoder on the same pixels gives mean and deviation; the draw is fixed by the file's name."""
    out = tmp_path / "meta_lat.json"
    prepare(folder, metadata, out, tiny_models["sd1"], "--flip_aug")
    vae = load_stable_diffusion(identify(tiny_models["sd1"]), "epsilon").vae.float()
    buckets: dict[str, int] = {}
    for key, entry in read(out).items():
        picture = next(path for path in folder.glob(f"{key.partition('.')[0]}.*") if path.suffix != ".npz")
        with np.load(picture.with_suffix(".npz"), allow_pickle=False) as fields:
            stored = {"": fields["latents"], "flipped": fields["latents_flipped"]}
            left, top, right, bottom = fields["crop_ltrb"].tolist()
            width, height = fields["original_size"].tolist()
        size = Size(right - left, bottom - top)
        assert entry["train_resolution"] == [size.width, size.height]
        scale = max(size.width / width, size.height / height)
        resized = Size(int(width * scale + 0.5), int(height * scale + 0.5))
        pixels = to_tensor(load_picture(picture, resized, (left, top, right, bottom)).pixels)
        for side, found in stored.items():
            with torch.no_grad():
                seen = pixels.flip(-1) if side else pixels
                distribution = vae.encode(seen[None]).latent_dist
            draws = generator(0, NO_EPOCH, f"{picture.name}|0|{bool(side)}", "latent")
            noise = torch.from_numpy(draws.standard_normal(found.shape, dtype=np.float32))
            expected = distribution.mean[0] + distribution.std[0] * noise
            assert torch.allclose(torch.from_numpy(found), expected, atol=1e-5)
            assert found.shape == (4, size.height // 8, size.width // 8) and found.dtype == np.float32
        buckets[str(size)] = buckets.get(str(size), 0) + 1
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[0] == ["bucket", "pictures", "mean", "crop"]
    assert {size: int(count) for size, count, _ in table[1:-1]} == buckets and len(buckets) > 1
    assert table[-1][:2] == ["all", "4"]


@pytest.mark.parametrize("full_path", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["relative", "full"])
def test_training_finds_everything(
    tiny_models: dict[str, Path],
    folder: Path,
    metadata: Path,
    tmp_path: Path,
    full_path: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The well-known command, without any option about the pictures, trains from the latents to the same bits."""
    out = tmp_path / "meta_lat.json"
    if full_path:
        write_metadata(metadata, (str(folder / name) for name in PICTURES))
    prepare(*(["--full_path"] if full_path else []), folder, metadata, out, tiny_models["sd1"], "--flip_aug")
    described = ["--in_json", str(out), *([] if full_path else ["--train_data_dir", str(folder)])]
    before = latents_in(folder)
    capsys.readouterr()
    prepared = tune(tiny_models["sd1"], tmp_path / "a", *described)
    told = capsys.readouterr().err
    assert "latents on disk: 4 reused, 0 encoded\n" in told
    assert "taken as if given: --enable_bucket --resolution 64,64" in told and "--flip_aug" in told
    assert latents_in(folder) == before
    by_hand = ["--in_json", str(metadata), *described[2:], *BY_HAND, "--flip_aug"]
    assert_same(prepared, tune(tiny_models["sd1"], tmp_path / "b", *by_hand))


@pytest.mark.slow
def test_folder_by_folder(
    tiny_models: dict[str, Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two folders with pictures of the same names, one after the other; train_network.py takes the last file."""
    first = copy_pictures(photos, tmp_path / "train_data1", PICTURES[:3])
    second = copy_pictures(photos, tmp_path / "deeper" / "train_data2", PICTURES[1:])
    places = [*(first / name for name in PICTURES[:3]), *((second / name).with_suffix("") for name in PICTURES[1:])]
    clean = write_metadata(tmp_path / "meta_clean.json", map(str, places))
    lat1, lat2 = tmp_path / "meta_lat1.json", tmp_path / "meta_lat2.json"
    prepare("--full_path", first, clean, lat1, tiny_models["sd1"])
    entries = read(lat1)
    assert [PREPARED in entry for entry in entries.values()] == [True] * 3 + [False] * 3
    assert list(entries.values())[3:] == list(read(clean).values())[3:] and not latents_in(second)
    prepare("--full_path", second, lat1, lat2, tiny_models["sd1"])
    assert all("train_resolution" in entry for entry in read(lat2).values())
    one_by_one = contents(latents_in(tmp_path))

    capsys.readouterr()
    prepared = run_here(tiny_models["sd1"], ["--in_json", str(lat2), *STEPS], tmp_path / "a")
    assert "latents on disk: 6 reused, 0 encoded\n" in capsys.readouterr().err
    by_hand = ["--in_json", str(clean), *BY_HAND, *STEPS]
    assert_same(prepared, run_here(tiny_models["sd1"], by_hand, tmp_path / "b"))

    for path in tmp_path.rglob("*.npz"):
        path.unlink()
    both = tmp_path / "both.json"
    prepare(first, second, clean, both, tiny_models["sd1"])
    assert contents(latents_in(tmp_path)) == one_by_one and both.read_bytes() == lat2.read_bytes()


def test_a_second_generation_model(tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path) -> None:
    out = tmp_path / "meta_lat.json"
    prepare("--v2", folder, metadata, out, tiny_models["sd2"])
    assert len(latents_in(folder)) == 4
    with pytest.raises(UserError, match="leave --v2 out"):
        prepare("--v2", folder, metadata, out, tiny_models["sd1"])


def test_started_again(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a run that was killed, only what is missing is made, to the same bytes, and nothing is left of it."""
    out = tmp_path / "meta_lat.json"
    prepare(folder, metadata, out, tiny_models["sd1"])
    clean, entries = latents_in(folder), out.read_bytes()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = temporary_name(".npz").replace(f"-{os.getpid()}.", f"-{dead.pid}.")
    (folder / name).write_bytes(b"half of it")
    out.unlink()
    (folder / "cat.npz").unlink()
    capsys.readouterr()
    prepare(folder, metadata, out, tiny_models["sd1"], "--skip_existing")
    assert "3 reused, 1 encoded (1 not there yet)" in capsys.readouterr().err
    assert contents(latents_in(folder)) == contents(clean) and out.read_bytes() == entries
    assert {name: when for name, (when, _) in latents_in(folder).items() if name != "cat.npz"} == {
        name: when for name, (when, _) in clean.items() if name != "cat.npz"
    }
    assert not (folder / name).exists()


def test_sizes_are_those_of_the_limits(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "out.json"
    sizes = {"flat": (400, 40), "tall": (40, 400), "square": (200, 200), "small": (50, 50)}
    for number, (name, size) in enumerate(sizes.items()):
        save_picture(folder / f"{name}.png", size, number)
    metadata = write_metadata(tmp_path / "meta.json", sizes)

    def trained_sizes(*words: str) -> list[list[int]]:
        prepare(folder, metadata, out, tiny_models["sd1"], *words)
        return [entry["train_resolution"] for entry in read(out).values()]

    assert trained_sizes() == [[128, 32], [32, 128], [64, 64], [64, 64]]
    assert trained_sizes("--bucket_no_upscale") == [[192, 16], [16, 192], [64, 64], [48, 48]]  # sizes of their own


def test_neither_batch_size_nor_processes_change_a_byte(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path
) -> None:
    out = tmp_path / "meta_lat.json"
    prepare(folder, metadata, out, tiny_models["sd1"])
    alone = contents(latents_in(folder))
    for path in folder.glob("*.npz"):
        path.unlink()
    words = ["--batch_size", "4", "--max_data_loader_n_workers", "2"]
    prepare_buckets_latents.main([str(folder), str(metadata), str(out), str(tiny_models["sd1"]), *SIZES, *words])
    assert contents(latents_in(folder)) == alone


def test_one_file_in_and_out(tiny_models: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    """Fields of others stay in their places, and so does the old file, beside the new one."""
    file = tmp_path / "meta.json"
    old = {
        "cat": {"rating": "s", "train_resolution": [1, 1], "caption": "a cat"},
        "coins": {"tags": "x"},
        "sub/gone": {"caption": "elsewhere"},
    }
    (folder / "sub").mkdir()
    shutil.copy(folder / "coffee.jpg", folder / "sub" / "gone.jpg")
    file.write_text(json.dumps(old), encoding="utf-8")
    prepare(folder, file, file, tiny_models["sd1"])
    new = read(file)
    assert list(new) == list(old) and list(new["cat"]) == ["rating", "train_resolution", "caption", PREPARED]
    assert new["cat"]["rating"] == "s" and new["cat"]["train_resolution"][0] % 16 == 0
    assert (folder / "sub" / "gone.npz").is_file() and "train_resolution" in new["sub/gone"]
    backups = [path for path in tmp_path.glob("meta*.json") if path != file]
    assert [read(path) for path in backups] == [old]
    before = latents_in(folder), file.read_bytes()
    prepare(folder, file, file, tiny_models["sd1"])
    assert (latents_in(folder), file.read_bytes()) == before
    assert [path for path in tmp_path.glob("meta*.json") if path != file] == backups


def test_a_broken_picture_stops_nothing(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path
) -> None:
    """Told by name, and by the exit code of a real process; what an earlier preparation said of it is gone."""
    out = tmp_path / "meta_lat.json"
    prepare(folder, metadata, out, tiny_models["sd1"])
    (folder / "coins.png").write_bytes((folder / "coins.png").read_bytes()[:500])
    with pytest.raises(Incomplete) as error:
        prepare(folder, out, tmp_path / "second.json", tiny_models["sd1"])
    assert len(error.value.problems) == 1 and "coins.png" in complaint(error) and "--bad_images" not in complaint(error)
    entries = read(tmp_path / "second.json")
    assert [PREPARED in entry and "train_resolution" in entry for entry in entries.values()] == [
        True,
        False,
        True,
        True,
    ]
    assert entries["coins.png"] == read(metadata)["coins.png"]
    command = [sys.executable, str(ROOT / "finetune" / "prepare_buckets_latents.py"), str(folder), str(metadata)]
    words = [str(tmp_path / "third.json"), str(tiny_models["sd1"]), *SIZES]
    result = subprocess.run([*command, *words], cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8")
    assert result.returncode == 3, result.stderr
    assert "coins.png" in result.stderr and "3 pictures of 4 entries prepared, 1 cannot be read" in result.stderr
    assert (tmp_path / "third.json").read_bytes() == (tmp_path / "second.json").read_bytes()
    assert result.stdout.startswith("bucket")


def test_pictures_and_entries_without_each_other(
    tiny_models: dict[str, Path], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pictures without an entry are named; entries of other folders need no pictures, those of this one do."""
    (folder / "below").mkdir()
    save_picture(folder / "below" / "unknown.png", (40, 40), 1)
    elsewhere = [str(tmp_path / "no" / "such.png"), "C:\\pictures\\one.png", "../outside"]
    file = write_metadata(tmp_path / "meta.json", ("cat", "coins", "rocket", *elsewhere))
    out = tmp_path / "out.json"
    prepare("--recursive", folder, file, out, tiny_models["sd1"])
    told = capsys.readouterr().err
    assert "1 pictures in its folders have no entry" in told and "coffee.jpg" in told
    assert "below: 1 pictures have no entry and are not prepared: unknown.png" in told
    assert {key: entry for key, entry in read(out).items() if key in elsewhere} == {
        key: entry for key, entry in read(file).items() if key in elsewhere
    }
    write_metadata(file, ("cat", str(folder / "lost.png"), "below/lost"))
    with pytest.raises(UserError) as error:
        prepare(folder, file, out, tiny_models["sd1"])
    assert "2 of 3 entries have no picture" in complaint(error)


def mistakes(folder: Path, file: Path, model: Path) -> dict[str, tuple[Sequence[str | Path], Sequence[str]]]:
    """Words that are wrong, and what is told of them."""
    other = folder.parent / "other"
    out = folder.parent / "out.json"
    return {
        "everything at once": (
            (folder / "none", folder.parent / "no.json", folder, folder / "no model"),
            ("none: it does not exist", "metadata file does not exist", "is a folder", "no such file or folder"),
        ),
        "relative keys called full": (("--full_path", folder, file, out, model), ("leave --full_path out",)),
        "relative keys of several folders": ((folder, other, file, out, model), ("merge again with --full_path",)),
        "a folder twice": ((folder, folder.parent, file, out, model), ("give the upper one alone",)),
        "nothing of this folder": ((other, file, out, model), ("4 of 4 entries have no picture",)),
        "no transparency": ((folder, file, out, model, "--alpha_mask"), ("no picture has transparency",)),
        "sizes": (
            (folder, file, out, model, "--bucket_reso_steps", "24"),
            ("--max_resolution", "the nearest sizes are 48x48 or 72x72"),
        ),
    }


@pytest.mark.parametrize("case", list(mistakes(Path("a"), Path("b"), Path("c"))))
def test_mistakes_are_told_before_anything_is_written(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path, case: str
) -> None:
    (tmp_path / "other").mkdir()
    words, told = mistakes(folder, metadata, tiny_models["sd1"])[case]
    with pytest.raises(UserError) as error:
        prepare_buckets_latents.main([*map(str, SIZES), *map(str, words)])
    for part in told:
        assert part in complaint(error)
    assert not latents_in(folder) and not (tmp_path / "out.json").exists()


def test_full_keys_of_another_folder(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path
) -> None:
    write_metadata(metadata, (str(tmp_path / "moved" / name) for name in PICTURES))
    with pytest.raises(UserError, match=r"no entry of .* names a picture in it"):
        prepare("--full_path", folder, metadata, tmp_path / "out.json", tiny_models["sd1"])


def test_a_foreign_file_in_the_way(tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path) -> None:
    np.savez(folder / "cat.npz", weights=np.zeros(3))
    with pytest.raises(UserError) as error:
        prepare(folder, metadata, tmp_path / "out.json", tiny_models["sd1"])
    assert "holds something else" in complaint(error) and "--cache_latents_to_disk" not in complaint(error)


@pytest.mark.slow
def test_two_processes_share_the_work(
    tiny_models: dict[str, Path], folder: Path, metadata: Path, tmp_path: Path
) -> None:
    out = tmp_path / "meta_lat.json"
    prepare(folder, metadata, out, tiny_models["sd1"])
    alone, entries = contents(latents_in(folder)), out.read_bytes()
    for path in (*folder.glob("*.npz"), out):
        path.unlink()
    words = [str(folder), str(metadata), str(out), str(tiny_models["sd1"]), *SIZES]
    run_script_in_processes("finetune/prepare_buckets_latents.py", words, 2)
    assert contents(latents_in(folder)) == alone and out.read_bytes() == entries
    (folder / "cat.jpg").write_bytes(b"")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "finetune/prepare_buckets_latents.py", *words]
    settings = {**environment(), "CUDA_VISIBLE_DEVICES": "-1"}
    result = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, encoding="utf-8")
    assert result.returncode == 1, result.stderr  # the launcher's own; its report has the code of the one that tells
    assert "1 thing could not be done" in result.stderr and "3 pictures of 4 entries prepared" in result.stderr
    assert "exitcode  : 3" in result.stderr

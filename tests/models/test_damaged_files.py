"""What people give instead of a model: each file gets one sentence of its own that says what is the matter."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from library.core.errors import UserError
from library.core.pickle_writer import write_pickled
from library.core.tensor_files import write_safetensors
from library.models.identify import identify
from tests.training.runs import ROOT, environment

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP = "cond_stage_model.transformer.text_model."
HTML = b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head><body>please log in</body></html>\n"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 4265380512\n"
XML = b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>AccessDenied</Code></Error>'


def safetensors(*names: str, **shaped: tuple[int, ...]) -> Callable[[Path], None]:
    """Writes zeros under these names; a keyword gives the shape of a name whose dots are written as `__`."""

    def write(path: Path) -> None:
        tensors = {name: torch.zeros(1) for name in names}
        tensors |= {name.replace("__", "."): torch.zeros(shape) for name, shape in shaped.items()}
        write_safetensors(path, tensors, {})

    return write


def header(text: str, data: int) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + b"\0" * data


def one(name: str, start: int, end: int, dtype: str = "F32", shape: str = "[2]") -> str:
    return f'"{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}'


def saved(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.arange(1000.0)}}, buffer, **options)
    return buffer.getvalue()


def zipped(**files: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model"))
    return buffer.getvalue()


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(buffer, form)
    return buffer.getvalue()


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.path}'",)


def malicious(path: Path) -> None:
    content = {"state_dict": {"a": torch.ones(1)}, "callbacks": Runs(path.with_name("ran"))}
    torch.save(content, path)


def unreadable(path: Path) -> None:
    write_safetensors(path, {"a": torch.ones(1)}, {})
    path.chmod(0)


def inpainting(path: Path) -> None:
    names = (f"{UNET}out.0.bias", f"{VAE}quant_conv.bias", f"{CLIP}final_layer_norm.bias")
    tensors = {name: torch.zeros(1) for name in names}
    tensors[f"{UNET}input_blocks.0.0.weight"] = torch.zeros(320, 9, 3, 3)
    write_safetensors(path, tensors, {})


def hypernetwork(path: Path) -> None:
    def layers() -> dict[str, torch.Tensor]:
        return {"linear.0.weight": torch.zeros(4, 4), "linear.0.bias": torch.zeros(4)}

    torch.save({768: (layers(), layers()), "step": 3, "layer_structure": [1, 1]}, path)


# File name, what to write, and a word of the answer (in any case).
CASES: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty.safetensors": (b"", "empty"),
    "few_bytes.safetensors": (b"\x01\x02\x03", "only 3 bytes"),
    "web_page.safetensors": (HTML, "web page"),
    "git_lfs.safetensors": (LFS, "git lfs pull"),
    "access.ckpt": (XML, "AccessDenied"),
    "unauthorized.ckpt": (b'{"error": "Unauthorized, please log in"}', "Unauthorized"),
    "not_found.safetensors": (b"Entry not found\n", "plain text"),
    "zeros.safetensors": (b"\0" * 10_000, "zeros"),
    "noise.ckpt": (bytes(range(255, 100, -1)) * 9, "not written by torch.save"),
    "plain_zip.ckpt": (zipped(readme=b"hello"), "zip archive"),
    "empty_zip.ckpt": (zipped(), "empty zip"),
    "packed.safetensors": (b"7z\xbc\xaf'\x1c\x00\x04" + b"x" * 50, "7z"),
    "packed.ckpt": (b"Rar!\x1a\x07\x01\x00" + b"x" * 50, "RAR"),
    "gzip.ckpt": (b"\x1f\x8b\x08\x00" + b"\x12" * 50, "gzip"),
    "tar.ckpt": (tarred(), "tar archive"),
    "quantised.safetensors": (b"GGUF\x03\x00\x00\x00" + b"\x01" * 50, "GGUF"),
    "preview.safetensors": (picture("PNG"), "PNG"),
    "preview.ckpt": (picture("JPEG"), "JPEG"),
    "cut_in_header.safetensors": (header("{" + one("a", 0, 8) + "}", 8)[:40], "inside its header"),
    "cut_in_data.safetensors": (header("{" + one("a", 0, 8) + "}", 3), "5 of its"),
    "absurd_header.safetensors": (b"\xff" * 8 + b"{}" * 50, "bytes long"),
    "broken_json.safetensors": (header("{" + one("a", 0, 8), 8), "valid JSON"),
    "duplicate.safetensors": (header("{" + one("a", 0, 8) + "," + one("a", 0, 8) + "}", 8), "twice"),
    "overlap.safetensors": (header("{" + one("a", 0, 8) + "," + one("b", 4, 12) + "}", 12), "overlap"),
    "gap.safetensors": (header("{" + one("a", 0, 8) + "," + one("b", 12, 20) + "}", 20), "belong to no tensor"),
    "out_of_range.safetensors": (header("{" + one("a", -8, 0) + "}", 8), "makes no sense"),
    "too_long.safetensors": (header("{" + one("a", 0, 8) + "}", 30), "longer than its header"),
    "unknown_dtype.safetensors": (header("{" + one("a", 0, 8, "NF4") + "}", 8), "NF4"),
    "misfit.safetensors": (header("{" + one("a", 0, 8, "F32", "[3]") + "}", 8), "needs 12 bytes"),
    "no_tensors.safetensors": (header("{}", 0), "no tensors"),
    "cut_zip.ckpt": (saved()[:2000], "end of its zip"),
    "cut_pickle.ckpt": (saved(_use_new_zipfile_serialization=False)[:150], "cut off"),
    "cut_numbers.ckpt": (saved(_use_new_zipfile_serialization=False)[:-100], "100 of its"),
    "broken_inner_pickle.ckpt": (zipped(**{"a__data.pkl": b"\x80\x02}tt."}), "makes no sense"),
    "safetensors.ckpt": (safetensors("a"), "rename it to safetensors.safetensors"),
    "torch.safetensors": (lambda path: torch.save({"a": torch.ones(1)}, path), "rename it to torch.ckpt"),
    "folder.safetensors": (lambda path: path.mkdir(), "folder"),
    "forbidden.safetensors": (unreadable, "permission"),
    "malicious.ckpt": (malicious, "tries to run os.system"),
    "lora.safetensors": (safetensors("lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight"), "LoRA"),
    "embedding.safetensors": (safetensors(emb_params=(2, 768)), "Textual Inversion"),
    "hypernetwork.pt": (hypernetwork, "hypernetwork"),
    "vae.safetensors": (safetensors("encoder.conv_in.weight", "decoder.conv_out.weight", "quant_conv.bias"), "VAE"),
    "sdxl.safetensors": (safetensors("conditioner.embedders.0.transformer.text_model.x", f"{UNET}out.0.bias"), "SDXL"),
    "inpainting.safetensors": (inpainting, "9 channels"),
    "something.ckpt": (lambda path: write_pickled(path, {"fc.weight": torch.ones(3, 3)}, None), "fc.weight"),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All of them, as files."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, (content, _) in CASES.items():
        if isinstance(content, bytes):
            (folder / name).write_bytes(content)
        else:
            content(folder / name)
    yield folder
    (folder / "forbidden.safetensors").chmod(0o600)


def answer(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        identify(path)
    (problem,) = caught.value.problems
    assert str(path) in problem.where and problem.fix
    return f"{problem.what} -> {problem.fix}"


def can_be_tried(name: str) -> bool:
    return name != "forbidden.safetensors" or (os.name == "posix" and os.geteuid() != 0)  # root may read everything


@pytest.mark.parametrize("name", CASES)
def test_the_answer_says_what_is_the_matter(folder: Path, name: str) -> None:
    if not can_be_tried(name):
        pytest.skip("this user may read every file")
    assert CASES[name][1].lower() in answer(folder / name).lower()
    assert not (folder / "ran").exists()


def test_no_two_answers_are_the_same(folder: Path) -> None:
    answers = {name: answer(folder / name).replace(str(folder), "") for name in CASES if can_be_tried(name)}
    assert len(answers) >= 25
    assert len(set(answers.values())) == len(answers), json.dumps(answers, indent=1)


def test_the_malicious_file_is_one(folder: Path, tmp_path: Path) -> None:
    """Python's own unpickler would run it."""
    with zipfile.ZipFile(folder / "malicious.ckpt") as archive:
        objects = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert b"system" in objects
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_the_script_answers_without_a_traceback(folder: Path, tmp_path: Path, photos: Path) -> None:
    names = ("web_page.safetensors", "cut_in_data.safetensors", "malicious.ckpt")
    program = (
        "import sys, train_network\n"
        "from library.core.errors import run_script\n"
        "words = sys.argv[4:]\n"
        "for model in sys.argv[1:4]:\n"
        "    run_script(lambda: train_network.main(['--pretrained_model_name_or_path', model, *words]))\n"
    )
    words = ("--train_data_dir", str(photos.parent), "--output_dir", str(tmp_path / "out"), "--max_train_steps", "1")
    command = [sys.executable, "-c", program, *(str(folder / name) for name in names), *words]
    result = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, encoding="utf-8")
    assert (result.returncode, result.stdout) == (0, "")
    assert "Traceback" not in result.stderr
    for name in names:
        assert str(folder / name) in result.stderr
        assert CASES[name][1] in result.stderr
    assert not (folder / "ran").exists()
    assert not (tmp_path / "out").exists()

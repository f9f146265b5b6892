"""finetune/make_captions.py: a caption file beside every picture, told mistakes, what was there stays."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.make_captions import main
from library.core.errors import Incomplete, UserError
from tests.captioning.tiny_blip import make_tiny_blip
from tests.hub_client_process import hub_environment
from tests.hub_server import Repo, served
from tests.training.runs import ROOT

NAMES = ("cat.jpg", "coffee.jpg", "galaxies.webp", "coins.png")


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_blip(tmp_path_factory.mktemp("models") / "blip")


@pytest.fixture
def data(photos: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "学習 data"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(photos / name, folder)
    return folder


def texts(folder: Path, ending: str = ".caption") -> dict[str, str]:
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"*{ending}"))}


def test_every_picture_gets_its_caption_whatever_the_batch(
    blip: Path, data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--caption_weights", str(blip), "--max_length", "30", "--seed", "42"]
    main([*words, "--batch_size", "3", str(data)])
    first = texts(data)
    assert list(first) == [f"{Path(name).stem}.caption" for name in sorted(NAMES)]
    assert len(set(first.values())) == len(NAMES) and all(text.strip() for text in first.values())
    said = capfd.readouterr().err
    assert "CPU" in said and str(blip) in said and "written 4, kept 0, failed 0" in said
    main([str(data), *words, "--overwrite"])
    assert texts(data) == first
    main([str(data), *words[:-1], "43", "--overwrite", "--caption_extension", ".other"])
    assert list(texts(data, ".other").values()) != list(first.values())


def test_with_nothing_to_do_no_model_is_needed(blip: Path, data: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        (data / name).with_suffix(".caption").write_text("mine", encoding="utf-8")
    main([str(data), "--model_dir", str(data / "models")])  # the one of the Hub, which is not there
    assert set(texts(data).values()) == {"mine"}
    assert "kept 4" in capfd.readouterr().err
    assert not (data / "models").exists()


def test_a_bad_picture_stops_nothing_and_is_told(blip: Path, data: Path) -> None:
    (data / "bad.png").write_bytes(b"no picture")
    with pytest.raises(Incomplete, match=r"bad\.png"):
        main([str(data), "--caption_weights", str(blip), "--batch_size", "2"])
    assert len(texts(data)) == len(NAMES)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        main([str(tmp_path / "none"), "--caption_weights", "http://a/b.pth", "--num_beams", "3", "--min_length", "80"])
    told = "\n".join(problem.where for problem in caught.value.problems)
    assert all(part in told for part in ("none", "--caption_weights", "--num_beams", "--min_length"))


def test_the_help_says_what_every_parameter_of_blip_means(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    told = re.sub(r"\s+", " ", capsys.readouterr().out)
    meant = {
        "--beam_search": "look for the likeliest caption",
        "--num_beams": "how many beginnings are followed side by side",
        "--top_p": "each word is drawn from the likeliest ones that together have this probability",
        "--max_length": "longest caption in tokens of BLIP",
        "--min_length": "shortest caption",
        "--repetition_penalty": "words that were said, also in the prompt, are less likely to come again",
        "--seed": "a picture's caption depends on this, its file name and its content alone",
        "--prompt": "words that every caption goes on from",
        "--batch_size": "pictures captioned together",
    }
    for flag, words in meant.items():
        assert words in told.partition(f" {flag} ")[2][:400], flag


def test_the_hub_is_asked_once(blip: Path, data: Path, tmp_path: Path) -> None:
    """By real processes; the second has a server it could ask, and does not."""
    (data / "bad.png").write_bytes(b"no picture")
    words = [str(data), "--caption_weights", "owner/blip", "--model_dir", str(tmp_path / "models")]
    with served() as hub:
        hub.repos["model", "owner/blip"] = Repo.of_folder(blip)
        hub.repos["model", "owner/blip"].files["README.md"] = b"not needed"
        command = [sys.executable, str(ROOT / "finetune" / "make_captions.py"), *words]
        settings = hub_environment(tmp_path / "home", hub.endpoint)
        run = subprocess.run(command, env=settings, capture_output=True, text=True, encoding="utf-8")
        assert run.returncode == 3, run.stderr
        assert "bad.png" in run.stderr and "Traceback" not in run.stderr and not run.stdout
        wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"}
        assert set(hub.downloads("owner/blip")) == {*wanted, "tokenizer_config.json"}
        made, asked = texts(data), len(hub.requests)
        assert len(made) == len(NAMES)
        (data / "bad.png").unlink()
        (data / "cat.caption").unlink()
        run = subprocess.run(command, env=settings, capture_output=True, text=True, encoding="utf-8")
        assert run.returncode == 0, run.stderr
        assert texts(data) == made and len(hub.requests) == asked
    main([str(data), "--caption_weights", str(blip), "--caption_extension", ".other"])
    assert list(texts(data, ".other").values()) == list(made.values())  # wherever the model comes from

"""Caption options and --vae through the real script: what they change, what they leave alone, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import train_network
from library.core.errors import UserError
from library.models.save import save_single_file
from library.models.tiny import make_tiny_model
from tests.training.runs import Tensors, assert_same, largest_difference, run_here

Train = Callable[..., Tensors]
LONG = "a cat, " * 60  # 180 tokens


@pytest.fixture
def train(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> Train:
    """Trains one captioned picture for three updates; returns the file's tensors."""

    def run(caption: str, *words: str, kind: str = "sd1", name: str = "run") -> Tensors:
        data = tmp_path / f"{name}-data"
        data.mkdir()
        shutil.copy(photos / "cat.jpg", data)
        (data / "cat.txt").write_text(caption, encoding="utf-8")
        picture = ["--train_data_dir", str(data), "--resolution", "64", "--max_train_steps", "3"]
        return run_here(tiny_models[kind], picture, tmp_path / name, *words)

    return run


def test_clip_skip_trains_the_layers_it_uses_and_keeps_the_others_at_zero(train: Train, tmp_path: Path) -> None:
    tensors = train("a cat", "--clip_skip", "2")
    assert len({key.split(".")[0] for key in tensors}) == 264, "the file has the modules that readers expect"
    ups = {key: bool(value.any()) for key, value in tensors.items() if key.endswith("lora_up.weight")}
    idle = {key for key, moved in ups.items() if not moved}
    assert idle == {key for key in ups if "te_text_model_encoder_layers_11_" in key}
    with safe_open(str(tmp_path / "run" / "last.safetensors"), "pt") as file:
        told = file.metadata()
    assert (told["ss_clip_skip"], told["modelspec.encoder_layer"]) == ("2", "2")


def test_clip_skip_1_is_the_default(train: Train) -> None:
    assert_same(train("a cat", "--clip_skip", "1", name="one"), train("a cat", name="none"))


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_longer_limits_read_more(train: Train, kind: str) -> None:
    answer = ["--v2"] if kind == "sd2" else []
    for tokens, shorter, longer in ((90, "75", "150"), (165, "150", "225")):
        captions = ["a cat, " * (tokens // 3) + end for end in ("sitting in the grass", "running on the street")]
        for limit in (shorter, longer):
            limited = ["--max_token_length", limit, *answer]
            first, second = (train(c, *limited, kind=kind, name=f"{limit} {c[-6:]} {tokens}") for c in captions)
            assert (largest_difference(first, second) > 0) == (limit == longer), "what differs lies behind the shorter"


def test_lost_words_are_told_with_the_option_that_reads_them(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train(LONG, "--max_token_length", "150", name="a")
    said = " ".join(capsys.readouterr().err.split())
    assert "1 captions do not fit into 150 tokens; the rest is not read (30 tokens): cat.jpg" in said
    assert "--max_token_length 225 reads more" in said
    train(LONG, "--max_token_length", "225", name="b")
    assert "do not fit" not in capsys.readouterr().err


def test_weights_act_and_a_weight_of_one_does_not(train: Train) -> None:
    plain = train("a red cat", name="plain")
    one = train("a (red:1.0) cat", "--weighted_captions", name="one")
    heavy = train("a (red:1.5) cat", "--weighted_captions", name="heavy")
    literal = train("a (red:1.5) cat", name="literal")
    assert_same(one, plain)
    assert largest_difference(heavy, plain) > 0 and largest_difference(literal, plain) > 0


def test_the_mean_is_restored_when_asked(train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_tiny_model("sd1", seed=0)
    with torch.no_grad():  # the states of a random model have no mean worth restoring
        model.text_encoder.final_layer_norm.bias += 1.0
    save_single_file(model, tmp_path / "leaning.safetensors", {})
    words = ["--pretrained_model_name_or_path", str(tmp_path / "leaning.safetensors"), "--weighted_captions"]
    heavy = train("a (red:1.5) cat", *words, name="heavy")
    restored = train("a (red:1.5) cat", *words, "--restore_weighted_mean", name="restored")
    assert largest_difference(heavy, restored) > 0
    assert "weighted, mean not restored" in (said := capsys.readouterr().err) and "weighted, mean restored" in said


def test_class_tokens_carry_weights(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    def run(tokens: str, *words: str) -> Tensors:
        folder = tmp_path / tokens
        (folder / f"1_{tokens}").mkdir(parents=True)
        shutil.copy(photos / "cat.jpg", folder / f"1_{tokens}")
        data = ["--train_data_dir", str(folder), "--resolution", "64", "--max_train_steps", "2"]
        return run_here(tiny_models["sd1"], data, tmp_path / f"out-{tokens}", *words)

    weighted = run("(shs) cat", "--weighted_captions")
    assert largest_difference(weighted, run("[shs] cat", "--weighted_captions")) > 0, "the weights count"
    assert_same(run("(shs:1.0) cat", "--weighted_captions"), run("shs cat"))
    assert largest_difference(weighted, run("((shs)) cat")) > 0, "and the brackets are no text"


def test_brackets_without_partner_are_told(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    train("a (red cat", "--weighted_captions")
    assert "warning: 1 captions have brackets without a partner" in " ".join(capsys.readouterr().err.split())


def test_another_vae_changes_the_latents_and_is_told(
    train: Train, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.ckpt"
    save_single_file(make_tiny_model("sd1", seed=6), other, {})
    own = train("a cat", name="own")
    fresh = train("a cat", "--vae", str(other), name="fresh")
    cached = train("a cat", "--vae", str(other), "--cache_latents", name="cached")
    assert largest_difference(own, fresh) > 0
    assert_same(fresh, cached)
    assert "VAE: other.ckpt instead of the model's own" in capsys.readouterr().err
    with safe_open(str(tmp_path / "fresh" / "last.safetensors"), "pt") as file:
        assert file.metadata()["ss_vae_name"] == "other.ckpt"


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("sd2", ["--v2", "--clip_skip", "2"], "--clip_skip: .* always uses the penultimate layer"),
        ("sd1", ["--clip_skip", "13"], "has 12 layers, layer 13 from the end does not exist"),
        ("sd1", ["--max_token_length", "100"], "must be one of 75, 150, 225, got 100"),
        ("sd1", ["--no_token_padding", "--max_token_length", "150"], "pieces of 75 tokens are always padded"),
        ("sd1", ["--restore_weighted_mean"], "no effect without weights"),
        ("sd1", ["--prompt_splitting", "webui"], "one piece of 75 tokens, so nothing is split"),
        ("sd2_v", [], "does it predict noise .* or v"),
        ("sd1", ["--vae", "nowhere.pt"], "nowhere.pt"),
    ],
)
def test_contradictions_are_one_sentence(train: Train, tmp_path: Path, kind: str, words: list[str], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        train("a cat", *words, kind=kind)
    assert len(caught.value.problems) == 1
    assert not (tmp_path / "run").exists()


def test_batches_of_unpadded_captions_train(tiny_models: dict[str, Path], photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, caption in (("cat", "a cat"), ("rocket", "a rocket on its way into space")):
        shutil.copy(photos / f"{name}.jpg", data)
        (data / f"{name}.txt").write_text(caption, encoding="utf-8")
    words = ["--train_data_dir", str(data), "--resolution", "64", "--max_train_steps", "2", "--train_batch_size", "2"]
    padded = run_here(tiny_models["sd1"], words, tmp_path / "padded")
    unpadded = run_here(tiny_models["sd1"], words, tmp_path / "unpadded", "--no_token_padding")
    assert largest_difference(padded, unpadded) > 0


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_network.main(["--help"])
    shown = capsys.readouterr().out
    assert all(f"--{name}" in shown for name in ("clip_skip", "max_token_length", "weighted_captions", "vae"))

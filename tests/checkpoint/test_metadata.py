"""What a trained file tells of its making: every key that tools read, true values, and no path."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

import train_network
import train_textual_inversion
from library.checkpoint.metadata import network_values, text_values
from library.core.sizes import Size
from library.options.network import NetworkOptions

SECRET = "zebra_street_7"  # a part of every path of these runs that may appear nowhere
JSON_KEYS = ("ss_network_args", "ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_tag_frequency", "ss_bucket_info")
CHANGING_KEYS = ("ss_session_id", "ss_training_started_at", "ss_training_finished_at", "ss_bucket_info")


NOT_ASKED_FOR = (
    "ss_noise_offset",
    "ss_multires_noise_iterations",
    "ss_multires_noise_discount",
    "ss_adaptive_noise_scale",
    "ss_min_snr_gamma",
    "ss_ip_noise_gamma",
    "ss_scale_weight_norms",
    "ss_network_weights",
    "ss_v_pred_like_loss",
    "ss_huber_schedule",
    "ss_huber_c",
    "ss_huber_scale",
    "ss_clip_skip",
    "ss_vae_name",
    "ss_vae_hash",
    "ss_new_vae_hash",
)
SWITCHES_LEFT_OFF = (
    "ss_noise_offset_random_strength",
    "ss_ip_noise_gamma_random_strength",
    "ss_scale_v_pred_loss_like_noise_pred",
    "ss_debiased_estimation",
    "ss_zero_terminal_snr",
    "ss_masked_loss",
    "ss_full_fp16",
    "ss_full_bf16",
    "ss_lowram",
    "ss_fused_backward_pass",
)
# pictures and captions that nothing happens to
UNCHANGED: dict[str, object] = {
    "color_aug": False,
    "flip_aug": False,
    "random_crop": False,
    "face_crop_aug_range": None,
    "alpha_mask": False,
    "conditioning_data_dir": None,
    "loss_weight": 1.0,
    "shuffle_caption": False,
    "keep_tokens": 0,
    "caption_tag_dropout_rate": 0.0,
    "caption_dropout_rate": 0.0,
    "caption_dropout_every_n_epochs": 0,
    "enable_wildcard": False,
    "caption_separator": ",",
    "keep_tokens_separator": None,
    "secondary_separator": None,
    "caption_prefix": None,
    "caption_suffix": None,
    "token_warmup_min": 1,
    "token_warmup_step": 0.0,
}


# what the file says of options that nobody gave
LEFT_ALONE: dict[str, str] = {
    **{f"ss_{name}": str(value) for name, value in UNCHANGED.items()},
    **dict.fromkeys(NOT_ASKED_FOR, "None"),
    **dict.fromkeys(SWITCHES_LEFT_OFF, "False"),
    **dict.fromkeys(("ss_base_weights", "ss_base_weights_multiplier", "ss_lr_scheduler_args"), "[]"),
    "ss_loss_type": "l2",
    "ss_min_timestep": "0",
    "ss_max_timestep": "1000",
}


@dataclass(frozen=True)
class Finished:
    """A run that has ended: what its file and its log hold, and when it took place."""

    file: Path
    metadata: dict[str, str]
    log: str
    started: float
    ended: float


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A person's folder with two captioned training pictures, one of them with tags, and three of regularisation."""
    home = tmp_path_factory.mktemp(SECRET) / "home"
    train, reg = home / "train" / "3_shs cat", home / "reg" / "2_cat"
    train.mkdir(parents=True)
    reg.mkdir(parents=True)
    for name in ("cat.jpg", "rocket.jpg"):
        shutil.copy(photos / name, train)
    for name in ("coffee.jpg", "dahlia.jpg", "grass.jpg"):
        shutil.copy(photos / name, reg)
    (train / "cat.txt").write_text("shs cat, Green eyes\nthis line is not read\n", encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def models(home: Path, tiny_models: dict[str, Path]) -> dict[str, Path]:
    """The tiny models inside that folder."""
    (home / "models").mkdir()
    return {kind: Path(shutil.copy(path, home / "models")) for kind, path in tiny_models.items()}


Train = Callable[..., Finished]


@pytest.fixture(scope="module")
def train(home: Path, models: dict[str, Path]) -> Train:
    """Trains a kind of model into a folder of its own with the given words."""

    def run(kind: str, name: str, *words: str) -> Finished:
        out, started = home / f"out-{name}", time.time()
        base = ["--pretrained_model_name_or_path", str(models[kind]), "--output_dir", str(out), "--output_name", name]
        train_network.main([*base, "--max_data_loader_n_workers", "0", *words])
        file = out / f"{name}.safetensors"
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata()
        log = (out / f"{name}-log.jsonl").read_text(encoding="utf-8")
        return Finished(file, metadata, log, started, time.time())

    return run


@pytest.fixture(scope="module")
def full_run(train: Train, home: Path) -> Finished:
    """A run that gives as many options as have a key of their own."""
    data = ["--train_data_dir", str(home / "train"), "--reg_data_dir", str(home / "reg"), "--cache_latents"]
    data += ["--resolution", "128,64", "--enable_bucket", "--min_bucket_reso", "64", "--max_bucket_reso", "128"]
    data += ["--train_batch_size", "2", "--prior_loss_weight", "0.5", "--logging_dir", str(home / "logs")]
    network = ["--network_dim", "16", "--network_alpha", "8", "--network_dropout", "0.1", "--network_args"]
    rates = ["--learning_rate", "3e-4", "--unet_lr", "2e-4", "--text_encoder_lr", "5e-5"]
    optimizer = ["--optimizer_args", "weight_decay=0.1", "betas=0.9,0.99"]
    loop = ["--max_train_epochs", "2", "--gradient_accumulation_steps", "2", "--gradient_checkpointing", "--seed", "7"]
    words = [*data, *network, *rates, *optimizer, *loop, "--max_grad_norm", "0.5", "--training_comment", "a comment"]
    return train("sd1", "cat", *words)


@pytest.fixture(scope="module")
def plain_run(train: Train, home: Path) -> Finished:
    """A run with a dataset file, two datasets, and nothing said that need not be said; only the U-Net trains."""
    text = f"""
        [general]
        resolution = 64
        [[datasets]]
        batch_size = 2
        [[datasets.subsets]]
        image_dir = '{home / "train" / "3_shs cat"}'
        class_tokens = 'shs cat'
        num_repeats = 4
        [[datasets]]
        resolution = [128, 64]
        enable_bucket = true
        min_bucket_reso = 64
        [[datasets.subsets]]
        image_dir = '{home / "reg" / "2_cat"}'
        class_tokens = 'cat'
    """
    file = home / "set.toml"
    file.write_text(text, encoding="utf-8")
    words = ["--dataset_config", str(file), "--max_train_steps", "3", "--network_train_unet_only", "--v2"]
    return train("sd2", "plain", *words)


def test_every_key_holds_what_really_happened(full_run: Finished, models: dict[str, Path]) -> None:
    told = {key: value for key, value in full_run.metadata.items() if key.startswith("ss_")}
    model_bytes = models["sd1"].read_bytes()
    assert (
        {key: value for key, value in told.items() if key not in CHANGING_KEYS}
        == {
            "ss_output_name": "cat",
            "ss_training_comment": "a comment",
            "ss_learning_rate": "0.0003",
            "ss_text_encoder_lr": "5e-05",
            "ss_unet_lr": "0.0002",
            "ss_num_train_images": "6",  # pictures times repeats
            "ss_num_reg_images": "6",
            "ss_num_batches_per_epoch": told["ss_num_batches_per_epoch"],  # see the next test
            "ss_num_epochs": "2",
            "ss_gradient_checkpointing": "True",
            "ss_gradient_accumulation_steps": "2",
            "ss_max_train_steps": told["ss_max_train_steps"],
            "ss_lr_warmup_steps": "0",
            "ss_lr_scheduler": "constant",
            "ss_network_module": "networks.lora",
            "ss_network_dim": "16",
            "ss_network_alpha": "8.0",
            "ss_network_dropout": "0.1",
            "ss_network_args": "{}",
            "ss_mixed_precision": "no",
            "ss_v2": "False",
            "ss_base_model_version": "sd_v1",
            "ss_max_token_length": "75",
            "ss_cache_latents": "True",
            "ss_seed": "7",
            "ss_optimizer": "torch.optim.adamw.AdamW(weight_decay=0.1,betas=(0.9, 0.99))",
            "ss_max_grad_norm": "0.5",
            **LEFT_ALONE,
            "ss_prior_loss_weight": "0.5",
            "ss_batch_size_per_device": "2",
            "ss_total_batch_size": "4",
            "ss_resolution": "(128, 64)",
            "ss_enable_bucket": "True",
            "ss_bucket_no_upscale": "False",
            "ss_min_bucket_reso": "64",
            "ss_max_bucket_reso": "128",
            "ss_dataset_dirs": '{"3_shs cat": {"n_repeats": 3, "img_count": 2}}',
            "ss_reg_dataset_dirs": '{"2_cat": {"n_repeats": 2, "img_count": 3}}',
            "ss_tag_frequency": told["ss_tag_frequency"],
            "ss_sd_model_name": "sd1.safetensors",
            "ss_sd_model_hash": hashlib.sha256(model_bytes[0x100000:0x110000]).hexdigest()[:8],
            "ss_new_sd_model_hash": hashlib.sha256(model_bytes).hexdigest(),
            "ss_epoch": "2",
            "ss_steps": told["ss_max_train_steps"],
        }
    )
    assert set(CHANGING_KEYS) <= set(told)
    assert json.loads(told["ss_tag_frequency"]) == {
        "3_shs cat": {"shs cat": 2, "green eyes": 1},
        "2_cat": {"cat": 3},
    }


def test_lengths_agree_with_the_log_and_the_buckets(full_run: Finished) -> None:
    rows = [json.loads(line) for line in full_run.log.splitlines()]
    updates = [row for row in rows if "loss/current" in row]
    first_epoch = [row for row in updates if row["epoch"] == 1]
    batches = int(full_run.metadata["ss_num_batches_per_epoch"])
    assert int(full_run.metadata["ss_steps"]) == len(updates) == updates[-1]["step"]
    assert updates[-1]["epoch"] == int(full_run.metadata["ss_epoch"])
    assert len(first_epoch) == -(-batches // 2)  # two batches an update
    assert (updates[-1]["lr/unet"], updates[-1]["lr/textencoder"]) == (2e-4, 5e-5)
    info = json.loads(full_run.metadata["ss_bucket_info"])
    assert sum(bucket["count"] for bucket in info["buckets"].values()) == 12
    # an epoch has six training uses and six of regularisation, in batches of two of one bucket
    assert 6 <= batches <= 6 + len(info["buckets"])
    for bucket in info["buckets"].values():
        width, height = bucket["resolution"]
        assert width * height <= 128 * 64 and width % 64 == height % 64 == 0
    assert 0 < info["mean_img_ar_error"] < 1


def test_buckets_count_the_uses_of_an_epoch(train: Train, home: Path) -> None:
    text = f"""
        [[datasets]]
        resolution = 64
        [[datasets.subsets]]
        image_dir = '{home / "train" / "3_shs cat"}'
        class_tokens = 'shs cat'
        [[datasets.subsets]]
        image_dir = '{home / "reg" / "2_cat"}'
        class_tokens = 'cat'
        is_reg = true
        num_repeats = 40
    """
    file = home / "balanced.toml"
    file.write_text(text, encoding="utf-8")
    told = train("sd1", "balanced", "--dataset_config", str(file), "--max_train_steps", "1").metadata
    (bucket,) = json.loads(told["ss_bucket_info"])["buckets"].values()
    assert bucket == {"resolution": [64, 64], "count": 4}  # two training uses and two of 120 of regularisation
    assert told["ss_num_batches_per_epoch"] == "4"


def test_captions_behind_a_template_are_not_told(home: Path, models: dict[str, Path]) -> None:
    data = ["--train_data_dir", str(home / "train"), "--reg_data_dir", str(home / "reg"), "--resolution", "64"]
    words = ["--token_string", "zumira", "--use_object_template", "--max_train_steps", "8"]
    words += ["--pretrained_model_name_or_path", str(models["sd1"]), "--output_dir", str(home / "out-word")]
    train_textual_inversion.main([*data, *words, "--max_data_loader_n_workers", "0"])
    with safe_open(str(home / "out-word" / "last.safetensors"), framework="pt") as opened:
        metadata = opened.metadata()
    assert json.loads(metadata["ss_tag_frequency"]) == {"2_cat": {"cat": 3}}


def test_times_are_those_of_the_run(full_run: Finished) -> None:
    metadata = full_run.metadata
    start, finish = (float(metadata[f"ss_training_{moment}_at"]) for moment in ("started", "finished"))
    assert full_run.started <= start < finish <= full_run.ended
    assert 0 <= int(metadata["ss_session_id"]) < 2**32
    date = datetime.fromisoformat(metadata["modelspec.date"]).replace(tzinfo=UTC)
    assert date.timestamp() == int(finish)


def test_each_run_has_a_session_of_its_own(full_run: Finished, plain_run: Finished) -> None:
    assert full_run.metadata["ss_session_id"] != plain_run.metadata["ss_session_id"]


def test_hashes_are_those_of_the_file(full_run: Finished) -> None:
    content = full_run.file.read_bytes()
    assert len(content) > 0x110000  # the legacy hash covers something
    data = content[8 + int.from_bytes(content[:8], "little") :]
    assert full_run.metadata["sshs_model_hash"] == hashlib.sha256(data).hexdigest()
    assert full_run.metadata["sshs_legacy_hash"] == hashlib.sha256(content[0x100000:0x110000]).hexdigest()[:8]


def test_a_run_with_a_dataset_file_describes_its_datasets(plain_run: Finished) -> None:
    told = plain_run.metadata
    same = UNCHANGED
    assert json.loads(told["ss_datasets"]) == [
        {
            "batch_size_per_device": 2,
            "resolution": [64, 64],
            "enable_bucket": False,
            "subsets": [
                {"image_dir": "3_shs cat", "num_repeats": 4, "class_tokens": "shs cat", "is_reg": False, **same}
            ],
        },
        {
            "batch_size_per_device": 1,
            "resolution": [128, 64],
            "enable_bucket": True,
            "subsets": [{"image_dir": "2_cat", "num_repeats": 1, "class_tokens": "cat", "is_reg": False, **same}],
        },
    ]
    assert json.loads(told["ss_dataset_dirs"]) == {
        "3_shs cat": {"n_repeats": 4, "img_count": 2},
        "2_cat": {"n_repeats": 1, "img_count": 3},
    }
    assert (told["ss_num_train_images"], told["ss_num_reg_images"], told["ss_reg_dataset_dirs"]) == ("11", "0", "{}")
    assert (told["ss_num_batches_per_epoch"], told["ss_num_epochs"], told["ss_epoch"], told["ss_steps"]) == (
        "7",  # 8 uses in twos and 3 alone
        "1",
        "1",
        "3",
    )


def test_a_part_that_did_not_train_has_no_rate(plain_run: Finished) -> None:
    assert (plain_run.metadata["ss_text_encoder_lr"], plain_run.metadata["ss_unet_lr"]) == ("None", "0.0001")
    assert plain_run.metadata["ss_optimizer"] == "torch.optim.adamw.AdamW"


@pytest.mark.parametrize(
    ("kind", "words", "architecture", "version", "prediction_type"),
    [
        ("sd1", [], "stable-diffusion-v1/lora", "sd_v1", "epsilon"),
        ("sd2", ["--v2"], "stable-diffusion-v2-512/lora", "sd_v2_512", "epsilon"),
        ("sd2_v", ["--v_parameterization"], "stable-diffusion-v2-768-v/lora", "sd_v2_768_v", "v"),
    ],
)
def test_modelspec_tells_the_kind_of_model(
    train: Train, home: Path, kind: str, words: list[str], architecture: str, version: str, prediction_type: str
) -> None:
    data = ["--train_data_dir", str(home / "train"), "--resolution", "64,128", "--max_train_steps", "1"]
    told = train(kind, f"spec-{kind}", *data, *words).metadata
    spec = {key.removeprefix("modelspec."): value for key, value in told.items() if key.startswith("modelspec.")}
    assert datetime.fromisoformat(spec.pop("date"))
    assert spec == {
        "sai_model_spec": "1.0.1",
        "architecture": architecture,
        "implementation": "diffusers",
        "title": f"spec-{kind}",
        "resolution": "64x128",
        "prediction_type": prediction_type,
    }
    assert (told["ss_base_model_version"], told["ss_v2"]) == (version, str(kind != "sd1"))


@pytest.mark.parametrize("name", ["full_run", "plain_run"])
def test_values_are_texts_and_tables_are_json(name: str, request: pytest.FixtureRequest) -> None:
    run: Finished = request.getfixturevalue(name)
    content = run.file.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert all(type(value) is str for value in header["__metadata__"].values())
    for key in JSON_KEYS:
        assert isinstance(json.loads(run.metadata[key]), dict)


@pytest.mark.parametrize("name", ["full_run", "plain_run"])
def test_neither_file_nor_log_tells_where_anything_lies(name: str, home: Path, request: pytest.FixtureRequest) -> None:
    run: Finished = request.getfixturevalue(name)
    told = json.dumps(run.metadata, ensure_ascii=False) + run.log
    assert "3_shs cat" in told  # names of the pictures' folders do stand there
    for hidden in (SECRET, str(home), str(Path.home()), str(Path(__file__).parents[2])):
        assert hidden not in told
    assert SECRET.encode() not in run.file.read_bytes()


def test_arguments_that_are_paths_are_kept_by_name_only(tmp_path: Path) -> None:
    words = (f"preset={tmp_path / 'mine.toml'}", "conv_dim=4", "formula=a=b", "relative=presets/a.toml")
    told = text_values(network_values(NetworkOptions(network_args=words)))
    assert json.loads(told["ss_network_args"]) == {
        "preset": "mine.toml",
        "conv_dim": "4",
        "formula": "a=b",
        "relative": "presets/a.toml",
    }


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "None"), (True, "True"), (1e-4, "0.0001"), (Size(512, 768), "(512, 768)"), ({"猫": [1]}, '{"猫": [1]}')],
)
def test_how_values_are_written(value: Any, text: str) -> None:
    assert text_values({"key": value}) == {"key": text}

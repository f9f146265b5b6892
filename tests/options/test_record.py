"""Every option has its place: what its change means for a run that is resumed."""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest

from library.options.base import OptionGroup, default_of, option, option_fields
from library.options.caching import CachingOptions
from library.options.data import DataOptions
from library.options.embedding import EmbeddingOptions
from library.options.keeping import KeepingOptions
from library.options.memory import MemoryOptions
from library.options.network import NetworkOptions
from library.options.objective import ObjectiveOptions
from library.options.optimizer import OptimizerOptions
from library.options.parse import OptionValues, parse_options
from library.options.record import (
    EMBEDDING,
    NETWORK,
    TRAINS,
    WHOLE_MODEL,
    Kind,
    kind_of,
    options_record,
    recorded_defaults,
    recorded_kinds,
)
from library.options.scripts import TRAINING_SCRIPTS
from library.options.training import TrainingOptions

TRAINING = list(TRAINING_SCRIPTS)


def parse(script: str, *words: str) -> OptionValues:
    needed = ["--pretrained_model_name_or_path", "/home/me/secret/model.safetensors", "--output_dir", "/home/me/out"]
    return parse_options(script, "", TRAINING_SCRIPTS[script].groups, [*needed, *words])


@pytest.mark.parametrize("script", TRAINING)
def test_every_option_is_classified(script: str) -> None:
    for group in TRAINING_SCRIPTS[script].groups:
        for item in option_fields(group):
            assert isinstance(kind_of(group, item.name), Kind)


def test_an_option_without_a_place_is_an_error() -> None:
    @dataclass(frozen=True)
    class Grown(OptionGroup):
        shiny: bool = option(False, "new")

    with pytest.raises(KeyError):
        kind_of(Grown, "shiny")
    with pytest.raises(KeyError, match="--shiny"):
        kind_of(MemoryOptions, "shiny")


def test_one_name_means_one_thing() -> None:
    """Some names stand in several groups; a state knows names only."""
    kinds: dict[str, set[Kind]] = {}
    for script in TRAINING:
        for group in TRAINING_SCRIPTS[script].groups:
            for item in option_fields(group):
                kinds.setdefault(item.name, set()).add(kind_of(group, item.name))
    assert {name: found for name, found in kinds.items() if len(found) > 1} == {}


@pytest.mark.parametrize(
    ("group", "name", "kind"),
    [
        (CachingOptions, "cache_latents", Kind.FREE),
        (CachingOptions, "vae_batch_size", Kind.DECIDES),
        (DataOptions, "max_data_loader_n_workers", Kind.FREE),
        (DataOptions, "train_data_dir", Kind.BY_EFFECT),
        (KeepingOptions, "save_every_n_steps", Kind.FREE),
        (MemoryOptions, "xformers", Kind.DECIDES),
        (MemoryOptions, "full_bf16", Kind.FIXED),
        (NetworkOptions, "network_dim", Kind.FIXED),
        (NetworkOptions, "network_weights", Kind.STARTS),
        (EmbeddingOptions, "num_vectors_per_token", Kind.FIXED),
        (ObjectiveOptions, "noise_offset", Kind.DECIDES),
        (OptimizerOptions, "optimizer_args", Kind.DECIDES),
        (TrainingOptions, "seed", Kind.DECIDES),
        (TrainingOptions, "max_train_steps", Kind.BY_EFFECT),
    ],
)
def test_examples(group: type[OptionGroup], name: str, kind: Kind) -> None:
    assert kind_of(group, name) is kind


def test_a_record_has_no_paths_and_no_secrets() -> None:
    words = [
        "--base_weights",
        "/home/me/secret/a.safetensors",
        "b/c.pt",
        "--huggingface_token",
        "hf_abc",
        "--seed",
        "7",
    ]
    record = options_record(parse("train_network.py", *words))
    assert record["base_weights"] == ["a.safetensors", "c.pt"]
    assert record["seed"] == 7
    text = json.dumps(dict(record))
    assert "secret" not in text and "hf_abc" not in text and "home" not in text


def test_a_record_knows_what_trains() -> None:
    assert options_record(parse("train_network.py"))[TRAINS] == NETWORK
    assert options_record(parse("train_db.py"))[TRAINS] == WHOLE_MODEL
    assert options_record(parse("fine_tune.py"))[TRAINS] == WHOLE_MODEL
    assert options_record(parse("fine_tune.py", "--hypernetwork_module", "networks.hypernetwork"))[TRAINS] == NETWORK
    assert options_record(parse("train_textual_inversion.py", "--token_string", "zumira"))[TRAINS] == EMBEDDING


# of options that have no default themselves: what is in force without them, and what may have to be said beside it
SAID = {
    "clip_skip": ["1"],
    "network_dim": ["4"],
    "network_alpha": ["1"],
    "num_vectors_per_token": ["1"],
    "lr_scheduler_num_cycles": ["1"],
    "lr_scheduler_power": ["1"],
    "lr_scheduler_timescale": ["10000"],
}
UNSAID = {  # without them there is nothing; or, of the last two, `library/training/keep/state_facts.py` knows
    *("augmentation_variants", "network_dropout", "network_weights", "scale_weight_norms", "noise_offset"),
    *("adaptive_noise_scale", "multires_noise_iterations", "ip_noise_gamma", "min_snr_gamma", "v_pred_like_loss"),
    *("lr_scheduler_type", "lr_scheduler_min_lr_ratio", "stop_text_encoder_training", "hypernetwork_module"),
    *("hypernetwork_weights", "token_string", "init_word", "weights", "optimizer_type", "lr_scheduler"),
}


@pytest.mark.parametrize("script", TRAINING)
def test_to_say_a_default_changes_no_record(script: str) -> None:
    needed = ["--token_string", "zumira"] if script == "train_textual_inversion.py" else []
    record = options_record(parse(script, *needed))
    for group in TRAINING_SCRIPTS[script].groups:
        for item in option_fields(group):
            usual = default_of(item)
            if item.name not in recorded_kinds() or usual is False or usual == () or item.name in UNSAID:
                continue
            words = SAID[item.name] if usual is None else [f"{usual}"]
            assert options_record(parse(script, *needed, f"--{item.name}", *words)) == record, item.name


def test_what_files_or_other_options_decide_has_other_defaults() -> None:
    files = ["--base_weights", "a.safetensors", "b.safetensors"]
    said = options_record(parse("train_network.py", *files, "--base_weights_multiplier", "1", "1.0"))
    assert said == options_record(parse("train_network.py", *files))
    assert said["base_weights_multiplier"] == [1.0, 1.0]
    from_file = ["--dim_from_weights", "--network_weights", "a.safetensors"]
    assert options_record(parse("train_network.py", *from_file))["network_dim"] is None
    assert options_record(parse("train_network.py", "--lr_warmup_steps", "30"))["lr_scheduler_timescale"] == 30
    assert options_record(parse("train_network.py", "--lr_warmup_steps", "0.3"))["lr_scheduler_timescale"] is None
    embedding = parse("train_textual_inversion.py", "--token_string", "x-y", "--weights", "a.safetensors")
    assert options_record(embedding)["num_vectors_per_token"] is None
    tuned = options_record(parse("fine_tune.py", "--hypernetwork_weights", "a.pt"))
    assert tuned["hypernetwork_module"] == "networks.hypernetwork"


def test_defaults_are_known_for_all_that_is_recorded() -> None:
    record = options_record(parse("train_network.py"))
    assert set(record) - {TRAINS} <= set(recorded_defaults()) == set(recorded_kinds())
    assert {name: record[name] for name in record if name != TRAINS} == {
        name: recorded_defaults()[name] for name in record if name != TRAINS
    }

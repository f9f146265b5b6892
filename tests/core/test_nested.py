"""Nested values come back exactly, and nothing in their file is run."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as schedules

from library.core.nested import put_together, take_apart
from library.core.tensor_files import DTYPE_NAMES, bytes_of


def there_and_back(value: Any) -> Any:
    """Through the text of a file; NaN and infinity, which are no JSON, may not stand in it."""
    plain, tensors = take_apart(value)
    return put_together(json.loads(json.dumps(plain, allow_nan=False)), tensors)


def assert_same(found: Any, expected: Any) -> None:
    """Equal, and of equal types all the way down, with dicts in the same order."""
    kind = torch.Tensor if isinstance(expected, torch.Tensor) else type(expected)
    assert type(found) is kind, (found, expected)
    if isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype and found.shape == expected.shape
        assert bytes_of("", found) == bytes_of("", expected)
    elif isinstance(expected, dict):
        assert [*map(repr, found)] == [*map(repr, expected)]
        for key, item in expected.items():
            assert_same(found[key], item)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    else:
        assert found == expected or (found != found and expected != expected)


NUMBERS = [0, 1, -1, 2**70, True, False, None, 0.1, -0.0, 1e-320, math.inf, -math.inf, math.nan, 1.0]
PLAIN = {
    "numbers": NUMBERS,
    "texts": ["", "é 二 😀", "\udc80 of a file name", "a\0b", "$", '{"$": "tensor"}'],
    "keys of many types": {1: "int", "1": "text", 2.5: "float", None: 0, (1, ("a", 2)): 0, b"x": 0, True + 1: "two"},
    "a dict like our own marks": {"$": "tensor", "name": "0"},
    "tuples and lists": [(), [], (1,), [1], ((1, [2]),), {}],
    "sets": [set(), {3, 1, 2}, frozenset({"b", "a"}), {(1, 2)}, {torch.float32}],
    "dtypes": [torch.float32, torch.bfloat16, torch.int64, {torch.uint8: 1}],
    "sizes": [torch.Size([2, 3]), torch.Size([])],
    "bytes": [b"", b"\x00\xff"],
    "ordered": OrderedDict([("b", 1), ("a", (2,))]),
    "counted": Counter({3: 2, 7: 1, 0: 0}),
    "numpy": [np.float64(0.1), np.float32(0.1), np.int64(-5), np.uint8(7), np.bool_(True), np.complex64(1j)],
}


@pytest.mark.parametrize("name", PLAIN)
def test_plain_values_come_back_as_what_they_were(name: str) -> None:
    assert_same(there_and_back(PLAIN[name]), PLAIN[name])


def test_minus_zero_keeps_its_sign_and_numpy_its_bits() -> None:
    assert math.copysign(1, there_and_back(-0.0)) == -1
    assert np.isnan(there_and_back(np.float32("nan"))) and there_and_back(np.float16(0.1)).dtype == np.float16


@pytest.mark.parametrize("factory", (dict, list, int, float, set, None))
def test_a_defaultdict_still_makes_its_defaults(factory: Any) -> None:
    value = defaultdict(factory, {"there": 1})
    found = there_and_back(value)
    assert type(found) is defaultdict and found == value and found.default_factory is factory


def test_the_order_of_a_set_changes_nothing_in_the_file() -> None:
    words = [f"word {number}" for number in range(50)]
    texts = {json.dumps(take_apart(set(order))[0]) for order in (words, words[::-1], sorted(words))}
    assert len(texts) == 1


BASE = torch.arange(24.0).reshape(4, 6)
TENSORS = {
    **{str(dtype): torch.tensor([0, 1, 3]).to(dtype) for dtype in DTYPE_NAMES},
    "scalar": torch.tensor(2.5),
    "true": torch.tensor(True),
    "empty": torch.zeros(0, 3, dtype=torch.bfloat16),
    "turned": BASE.T,
    "steps": BASE[:, ::2],
    "repeated": torch.ones(1).expand(3, 4),
    "parameter": nn.Parameter(torch.ones(2)),
    "computed": nn.Parameter(torch.ones(2)) * 2,
    "conjugated": (torch.ones(2, dtype=torch.complex64) * 1j).conj(),
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_are_handed_over_as_they_are(name: str) -> None:
    plain, tensors = take_apart({"a": [TENSORS[name]]})
    assert json.loads(json.dumps(plain)) == plain and not any(tensor.requires_grad for tensor in tensors.values())
    assert_same(put_together(plain, tensors)["a"][0], TENSORS[name].detach().resolve_conj())


def test_tensors_are_no_copies_and_the_same_one_is_there_once() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    value = {"weight": weight, "again": weight.data, "part": weight[0], "twin": torch.ones(2, 3)}
    plain, tensors = take_apart(value)
    assert len(tensors) == 3
    found = put_together(plain, tensors)
    assert found["weight"].data_ptr() == weight.data_ptr() and found["weight"] is found["again"]
    assert found["twin"] is not found["weight"]
    assert_same(found["part"], weight[0])


def test_empty_tensors_of_different_shapes_stay_apart() -> None:
    value = [torch.zeros(0, 3), torch.zeros(2, 0), torch.zeros(0, dtype=torch.int64)]
    assert_same(there_and_back(value), value)


class Pair(NamedTuple):
    """A kind of tuple that has a class of its own."""

    one: int


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "place"),
    (
        ({"state": [0, {"a": object()}]}, r"\['state'\]\[1\]\['a'\]: a object"),
        ({(1, 2): Pair(1)}, r"\[\(1, 2\)\]: a .*Pair"),
        (lambda: 0, "the value itself: a function"),
        ({torch.ones(1): 1}, "the value itself: a tensor as a key"),
        ([{((torch.ones(1),),): 1}], r"\[0\]: a tensor as a key"),
        ([np.ones(2)], r"\[0\]: a numpy.ndarray"),
        ([np.datetime64("2020-01-01")], r"\[0\]: a numpy.datetime64"),
        ([defaultdict(lambda: 0)], r"\[0\]: a defaultdict of"),
        ([torch.ones(2, 2).to_sparse()], r"\[0\]: a tensor that is sparse"),
        ([torch.ones(2, device="meta")], r"\[0\]: a tensor that is .*without numbers"),
        ([torch.ones(1, dtype=torch.complex128)], r"\[0\]: a tensor of torch.complex128"),
        (endless(), "nested deeper than 100 levels"),
    ),
)
def test_what_cannot_be_kept_is_named_with_its_place(value: Any, place: str) -> None:
    with pytest.raises(ValueError, match=place):
        take_apart(value)


@pytest.mark.parametrize(
    "plain",
    (
        {"$": "os.system", "items": ["true"]},
        {"$": "eval", "is": "1"},
        {"$": "tensor", "name": "9"},
        {"$": "dtype", "is": "load"},
        {"$": "defaultdict", "of": "eval", "pairs": []},
        {"$": "dict", "pairs": [[["a list"], 1]]},
        {"$": "dict", "pairs": [1]},
        {"$": "tuple", "items": 3},
        {"$": "numpy", "dtype": "O", "hex": "00" * 8},
        {"$": "numpy", "dtype": "<f8", "hex": ""},
        {"$": ["tuple"]},
        {"$": "bytes", "hex": 1},
    ),
)
def test_nonsense_is_refused(plain: Any) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        put_together(plain, {})


def test_json_without_end_is_refused() -> None:
    plain: list[Any] = []
    for _ in range(100_000):
        plain = [plain]
    with pytest.raises(ValueError, match="makes no sense"):
        put_together(plain, {})


def make_schedules(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    one, other = schedules.ConstantLR(optimizer), schedules.ExponentialLR(optimizer, 0.9)
    return {
        "LambdaLR": schedules.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        "MultiStepLR": schedules.MultiStepLR(optimizer, [1, 2, 2]),
        "SequentialLR": schedules.SequentialLR(optimizer, [one, other], [2]),
        "ChainedScheduler": schedules.ChainedScheduler([one, other]),
        "CosineAnnealingWarmRestarts": schedules.CosineAnnealingWarmRestarts(optimizer, 3),
        "CyclicLR": schedules.CyclicLR(optimizer, 0.1, 1),
        "OneCycleLR": schedules.OneCycleLR(optimizer, 0.1, 10),
        "ReduceLROnPlateau": schedules.ReduceLROnPlateau(optimizer),
    }


def test_states_of_schedules_come_back() -> None:
    """Among them a `Counter`, infinity, tuples and the states of inner schedules."""

    def made() -> tuple[torch.optim.Optimizer, dict[str, Any]]:
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
        return optimizer, make_schedules(optimizer)

    optimizer, first = made()
    optimizer.step()
    for name, schedule in first.items():
        schedule.step(*([1.0] if name == "ReduceLROnPlateau" else []))
        assert_same(there_and_back(schedule.state_dict()), schedule.state_dict())
    _, second = made()
    resumed = second["MultiStepLR"]
    resumed.load_state_dict(there_and_back(first["MultiStepLR"].state_dict()))
    assert list(resumed.milestones.elements()) == [1, 2, 2]


def test_the_scale_of_half_precision_comes_back() -> None:
    state = torch.amp.GradScaler("cpu").state_dict()
    assert_same(there_and_back(state), state)

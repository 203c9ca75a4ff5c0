"""Policies on disk: what comes back decides alike, and a file that is not one of ours is refused in one line."""

import json
import os
import pickle
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load, save_file

from agents.ppo.config import PolicyConfig
from agents.ppo.policy import PlacementPolicy
from agents.ppo.storage import (
    FORMAT,
    METADATA_KEY,
    PACKAGES,
    load_policy,
    read_tensors,
    save_policy,
    write_tensors,
)
from envs.observation import ObservationLayout

torch.set_num_threads(1)

NODES = 3
LAYOUT = ObservationLayout(NODES)
CONFIG = PolicyConfig(node_width=5, pair_width=4, crowding_price=2.5, blind_to=("last", "congestion"))


def make_policy(seed: int = 0) -> PlacementPolicy:
    """A policy with random weights everywhere."""
    torch.manual_seed(seed)
    space = spaces.Box(0.0, 1e6, (LAYOUT.size,), np.float32)
    policy = PlacementPolicy(space, spaces.MultiDiscrete([NODES] * 2), lambda _: 1e-3, config=CONFIG)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return policy


def observations(count: int = 200) -> np.ndarray:
    """Rows with all nodes open."""
    rows = np.random.default_rng(1).exponential(1.0, (count, LAYOUT.size)).astype(np.float32)
    for name in ("nodes", "task_mask", "data_mask"):
        rows[:, LAYOUT.slices[name]] = 1.0
    return rows


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The file of a saved policy."""
    save_policy(tmp_path / "policy.safetensors", make_policy().scorer, {"scenario": "a", "validation_cost": 1.5})
    return tmp_path / "policy.safetensors"


def contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and metadata, read without our code."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return load(content), json.loads(json.loads(content[8 : 8 + size])["__metadata__"][METADATA_KEY])


def rewrite(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> None:
    """The file with changed tensors and metadata."""
    tensors, about = contents(path)
    change(tensors, about)
    save_file(tensors, path, metadata={METADATA_KEY: json.dumps(about)})


def refused(path: Path, rule: str) -> None:
    """Reading raises a one-line ValueError that names the file and the rule."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match=rule) as caught:
            load_policy(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert message.isprintable()


# What comes back.


def test_a_policy_that_comes_back_decides_alike(path):
    rows = observations()
    want, _ = make_policy().predict(rows, deterministic=True)
    learned, _ = load_policy(path)
    got, state = learned.predict(rows)
    np.testing.assert_array_equal(got, want)
    assert state is None
    assert learned.name == "learned"
    assert len(np.unique(got, axis=0)) > 4
    other, _ = make_policy(1).predict(rows, deterministic=True)
    assert not np.array_equal(want, other)


def test_every_weight_and_the_configuration_come_back(path):
    learned, _ = load_policy(path)
    want = make_policy().scorer.state_dict()
    got = learned.scorer.state_dict()
    assert set(got) == set(want)
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert learned.scorer.config == CONFIG
    assert not learned.scorer.training


def test_the_file_says_where_it_comes_from(path):
    _, about = load_policy(path)
    assert about == contents(path)[1]
    assert about["scenario"] == "a"
    assert about["validation_cost"] == 1.5
    assert about["format"] == FORMAT
    assert about["observation"] == "full"
    assert about["config"] == asdict(CONFIG) | {"blind_to": list(CONFIG.blind_to)}
    assert set(about["versions"]) == set(PACKAGES)
    assert about["versions"]["torch"] == torch.__version__


def test_the_same_policy_is_the_same_bytes(path, tmp_path):
    save_policy(tmp_path / "again", make_policy().scorer, {"scenario": "a", "validation_cost": 1.5})
    assert (tmp_path / "again").read_bytes() == path.read_bytes()


def test_saving_makes_the_folder_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "new" / "folder" / "p.safetensors"
    save_policy(path, make_policy(0).scorer, {})
    save_policy(path, make_policy(1).scorer, {})
    assert torch.equal(load_policy(path)[0].scorer.score.weight, make_policy(1).scorer.score.weight)
    assert os.listdir(path.parent) == ["p.safetensors"]


def test_tensors_of_every_kind_come_back(tmp_path):
    tensors = {
        "bytes": torch.arange(5, dtype=torch.uint8),
        "double": torch.tensor([1e300, -0.0, np.inf], dtype=torch.float64),
        "whole": torch.tensor([[1, 2**40]]),
        "number": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    write_tensors(tmp_path / "t", tensors, {"text": "äö", "none": None, "infinite": np.inf})
    got, about = read_tensors(tmp_path / "t")
    assert about == {"text": "äö", "none": None, "infinite": np.inf}
    assert {name: (t.dtype, t.tolist()) for name, t in got.items()} == {
        name: (t.dtype, t.tolist()) for name, t in tensors.items()
    }


# Whole or not at all.


@pytest.mark.parametrize("broken", ["replace", "fsync"])
def test_a_write_that_fails_leaves_the_old_file_whole(path, monkeypatch, broken):
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, broken, fail)
    with pytest.raises(OSError, match="No space left"):
        save_policy(path, make_policy(1).scorer, {})
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # no half-written file beside it
    load_policy(path)


def test_the_new_file_is_complete_before_it_takes_the_old_ones_place(path, monkeypatch):
    before, seen = path.read_bytes(), []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        assert Path(source).parent == Path(target).parent  # another file system could not move it in one step
        seen.append((Path(target).read_bytes(), load(Path(source).read_bytes())))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    save_policy(path, make_policy(1).scorer, {})
    ((old, new),) = seen
    assert old == before
    assert torch.equal(new["score.weight"], make_policy(1).scorer.score.weight)


def test_what_json_cannot_say_is_noticed_before_anything_is_written(path):
    before = path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_policy(path, make_policy(1).scorer, {"folder": Path()})
    assert path.read_bytes() == before


# What is refused.


def test_a_missing_file_is_refused(tmp_path):
    refused(tmp_path / "none.safetensors", r"no such file")
    refused(tmp_path, r"no such file")


def test_a_file_that_may_not_be_read_is_refused(path):
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    refused(path, r"not a safetensors file, or a damaged one")


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.6, 0.999])
def test_a_truncated_file_is_refused(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    refused(path, r"not a safetensors file, or a damaged one")


def test_a_file_with_something_behind_it_is_refused(path):
    path.write_bytes(path.read_bytes() + b"more")
    refused(path, r"not a safetensors file, or a damaged one")


@pytest.mark.parametrize("size", [1, 7, 8, 9, 100, 10_000])
def test_random_bytes_are_refused(tmp_path, size):
    (tmp_path / "p").write_bytes(np.random.default_rng(size).bytes(size))
    refused(tmp_path / "p", r"not a safetensors file, or a damaged one")


def test_a_header_that_promises_more_than_there_is_is_refused(path):
    content = bytearray(path.read_bytes())
    for size in (2**63, 2**40, 0, len(content)):
        content[:8] = size.to_bytes(8, "little")
        path.write_bytes(content)
        refused(path, r"not a safetensors file, or a damaged one")


class Bomb:
    """Makes a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return (open, (str(self.target), "w"))


@pytest.mark.parametrize("kind", ["pickle", "torch", "zip of torch"])
def test_a_pickle_is_refused_and_not_run(tmp_path, kind):
    path, target = tmp_path / "policy", tmp_path / "made"
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"score.weight": Bomb(target)}))
        pickle.loads(path.read_bytes())["score.weight"].close()  # so the test could fail
    else:
        torch.save({"x": Bomb(target)}, path, _use_new_zipfile_serialization=kind != "torch")
        torch.load(path, weights_only=False)["x"].close()
    assert target.exists()
    target.unlink()
    refused(path, r"not a safetensors file, or a damaged one")
    assert not target.exists()


@pytest.mark.parametrize(
    "text", [None, "", "no JSON", "[1, 2]", '"text"', "3", "null", "{", pytest.param("[" * 100_000, id="deep")]
)
def test_safetensors_of_others_are_refused(path, text):
    metadata = None if text is None else {METADATA_KEY: text}
    save_file(contents(path)[0], path, metadata=metadata)
    refused(path, r"the metadata must hold a JSON object under 'numa_rl'; not one of ours")


@pytest.mark.parametrize("value", ["numa-rl policy 0", "numa-rl checkpoint 1", None, 1, ["numa-rl policy 1"]])
def test_another_format_is_refused(path, value):
    rewrite(path, lambda tensors, about: about.update(format=value))
    refused(path, r"a policy file must say format 'numa-rl policy 1', got ")
    rewrite(path, lambda tensors, about: about.pop("format"))
    refused(path, r"got None")


@pytest.mark.parametrize("value", ["chapter", None, 3, {}])
def test_a_policy_for_other_observations_is_refused(path, value):
    rewrite(path, lambda tensors, about: about.update(observation=value))
    refused(path, r"the policy must read the observation groups 'full', got ")


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        (lambda config: config.pop("alpha"), r"config must have the keys \['alpha', .*, got"),
        (lambda config: config.update(depth=3), r"config must have the keys"),
        (lambda config: config.update(node_width=5.0), r"config\.node_width must be of type int, got 5\.0"),
        (lambda config: config.update(node_width="5"), r"config\.node_width must be of type int, got '5'"),
        (lambda config: config.update(node_width=True), r"config\.node_width must be of type int, got True"),
        (lambda config: config.update(node_width=None), r"config\.node_width must be of type int, got None"),
        (lambda config: config.update(alpha="1"), r"config\.alpha must be of type float, got '1'"),
        (lambda config: config.update(alpha=False), r"config\.alpha must be of type float, got False"),
        (lambda config: config.update(alpha=[1.0]), r"config\.alpha must be of type float"),
        (lambda config: config.update(prior=1), r"config\.prior must be of type bool, got 1"),
        (lambda config: config.update(prior="yes"), r"config\.prior must be of type bool, got 'yes'"),
        (lambda config: config.update(heads=2), r"config\.heads must be of type str, got 2"),
        (
            lambda config: config.update(heads="three"),
            r"policy: heads must be one of joint, bilinear, independent, got 'three'",
        ),
        (lambda config: config.update(encoder=["flat"]), r"config\.encoder must be of type str, got \['flat'\]"),
        (
            lambda config: config.update(encoder="round"),
            r"policy: encoder must be one of equivariant, attention, flat, got 'round'",
        ),
        (lambda config: config.update(blind_to="queue"), r"config\.blind_to must be of type list of str, got 'queue'"),
        (lambda config: config.update(blind_to=[1]), r"config\.blind_to must be of type list of str, got \[1\]"),
        (lambda config: config.update(blind_to=[["queue"]]), r"config\.blind_to must be of type list of str"),
        (lambda config: config.update(blind_to=["nodes"]), r"policy: blind_to must be among memory, .* got 'nodes'"),
        (lambda config: config.update(node_width=0), r"policy: node_width must be in 1\.\.4096, got 0"),
        (lambda config: config.update(node_width=10**9), r"policy: node_width must be in 1\.\.4096"),
        (lambda config: config.update(pair_width=-1), r"policy: pair_width must be in"),
        (lambda config: config.update(crowding_price=-1.0), r"policy: crowding_price must be in"),
        (lambda config: config.update(crowding_price=float("nan")), r"policy: crowding_price must be in .* got nan"),
        (lambda config: config.update(prior_scale=float("inf")), r"policy: prior_scale must be in .* got inf"),
        (lambda config: config.update(migration_share=10**400), r"policy: migration_share must be in"),
    ],
)
def test_a_wrong_configuration_is_refused(path, change, rule):
    rewrite(path, lambda tensors, about: change(about["config"]))
    refused(path, rule)


@pytest.mark.parametrize("value", [None, [], "config", 3])
def test_a_configuration_that_is_no_object_is_refused(path, value):
    rewrite(path, lambda tensors, about: about.update(config=value))
    refused(path, r"config must have the keys")


def test_a_price_may_be_a_whole_number(path):
    rewrite(path, lambda tensors, about: about["config"].update(crowding_price=2))
    assert load_policy(path)[0].scorer.config.crowding_price == 2


def test_a_width_that_the_weights_do_not_have_is_refused(path):
    rewrite(path, lambda tensors, about: about["config"].update(node_width=6))
    refused(path, r"weight '.*' must be torch\.float32 of shape \(.*\), got torch\.float32 of shape \(.*\)")


def test_wrong_weights_are_refused(path):
    whole = path.read_bytes()

    def check(name: str, value: torch.Tensor | None, rule: str) -> None:
        path.write_bytes(whole)
        rewrite(path, lambda tensors, about: tensors.pop(name) if value is None else tensors.update({name: value}))
        refused(path, rule)

    shape = (1, 4)
    check("score.weight", None, r"weights must be \[.*'score\.weight'.*\], got \[.*\]")
    check("more", torch.zeros(1), r"weights must be .* got .*'more'")
    check("score.weight", torch.zeros(4), r"'score\.weight' must be .* of shape \(1, 4\), got .* of shape \(4,\)")
    check("score.weight", torch.zeros(shape, dtype=torch.float64), r"'score\.weight' must be torch\.float32")
    check("score.weight", torch.zeros(shape, dtype=torch.uint8), r"'score\.weight' must be .*, got torch\.uint8")
    for value in (float("nan"), float("inf"), -float("inf")):
        check("score.weight", torch.full(shape, value), r"'score\.weight' must be finite, got NaN or infinity")
    check("log_scale", torch.tensor(float("nan")), r"'log_scale' must be finite")
    check("log_scale", torch.tensor(200.0), r"'log_scale' must lie within \+-30, got 200: .* overflow")
    check("score.weight", torch.full(shape, -3e30), r"'score\.weight' must lie within \+-10000, got 3e\+30")


@pytest.mark.parametrize("dtype", ["F4", "F8_E8M0", "F6_E2M3", "F8_E4M3", "BF16", "C64", "U64", "BOOL", "X9"])
def test_weights_of_strange_types_are_refused(path, dtype):
    bits = {"F4": 4, "F6_E2M3": 6, "BF16": 16, "C64": 64, "U64": 64}.get(dtype, 8)
    header = json.dumps(
        {
            "__metadata__": {METADATA_KEY: json.dumps(contents(path)[1])},
            "score.weight": {"dtype": dtype, "shape": [1, 4], "data_offsets": [0, 4 * bits // 8]},
        }
    ).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4 * bits // 8))
    refused(path, r"not a safetensors file, or a damaged one|weights must be")


def test_any_damaged_bit_of_the_header_is_refused_or_harmless(path):
    whole = path.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    rng, messages = np.random.default_rng(0), []
    for at in rng.integers(size, size=300):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            load_policy(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 100
    assert all(message.startswith(f"{path}: ") and "\n" not in message for message in messages)


def test_the_text_of_a_file_cannot_write_on_the_terminal(path):
    rewrite(path, lambda tensors, about: about.update(format="\x1b[2J\n"))
    refused(path, r"got '\\x1b\[2J\\n'")
    path.write_bytes(path.read_bytes()[:-1])
    refused(path, r"damaged")
    save_policy(path, make_policy().scorer, {})
    rewrite(path, lambda tensors, about: tensors.update({"\x1b[2J": torch.zeros(1)}))
    refused(path, r"weights must be")

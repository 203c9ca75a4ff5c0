"""Exported policies decide as the policy does, without this package, and whoever exports is told if they do not."""

import ast
import json
import re
import runpy
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from agents.ppo.config import PolicyConfig
from agents.ppo.scorer import PairScorer
from agents.ppo.scorers import make_scorer
from agents.ppo.storage import LearnedScheduler, save_policy
from agents.rules.greedy import PricedGreedy
from envs.observation import _FULL_GROUPS, ObservationLayout
from envs.observation_kernel import TaskFeature
from experiments import bench_decisions, export_decide, export_forms
from experiments.export import Export, compare_forms
from experiments.export_decide import Policy
from experiments.export_forms import DECIDE, POLICY_NPZ, POLICY_ONNX, write_numpy, write_onnx
from experiments.export_play import visited

torch.set_num_threads(1)

SMALL = PolicyConfig(node_width=6, pair_width=5)
needs_onnx = pytest.mark.skipif(
    find_spec("onnx") is None or find_spec("onnxruntime") is None, reason="needs the extra numa-rl[export]"
)
FORMS = ["numpy", pytest.param("onnx", marks=needs_onnx)]


def randomised(scorer: PairScorer, seed: int = 0) -> PairScorer:
    """The network with other weights everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in scorer.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return scorer.eval()


def make_network(config: PolicyConfig = SMALL, seed: int = 0) -> PairScorer:
    torch.manual_seed(seed)
    return randomised(make_scorer(config), seed)


def write(form: str, folder: Path, scorer: PairScorer, num_nodes: int = 8) -> Any:
    return write_numpy(folder, scorer) if form == "numpy" else write_onnx(folder, scorer, num_nodes)


def policy_file(folder: Path, config: PolicyConfig = SMALL) -> Path:
    """A saved policy with random weights."""
    save_policy(folder / "policy.safetensors", make_network(config), {"scenario": "somewhere"})
    return folder / "policy.safetensors"


@pytest.fixture(scope="module")
def eight() -> np.ndarray:
    """10,000 observations of eight nodes, of all families of the suite."""
    return visited(PricedGreedy(), 8, 10_000)


# What was visited.


def test_visited_states_are_many_and_of_machines_at_work(eight):
    groups = ObservationLayout(8).split(eight)
    assert eight.shape == (10_000, ObservationLayout(8).size)
    assert len(np.unique(eight, axis=0)) > 8_000
    assert (groups["communication"].max(axis=(1, 2)) > 0).mean() > 0.8
    assert (groups["data"].sum(axis=1) > 0).mean() > 0.2
    assert (groups["nodes"] == 1.0).all()


def test_they_are_the_same_for_the_same_seed():
    one, two, other = (visited(PricedGreedy(), 2, 60, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, other)


# The same decisions.


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("prior", [True, False])
def test_ten_thousand_actions_are_exactly_the_same(form, prior, tmp_path, eight):
    scorer = make_network(PolicyConfig(prior=prior))
    exported, learned = write(form, tmp_path, scorer), LearnedScheduler(scorer)
    actions, _ = learned.predict(eight)
    got = np.concatenate([exported.decide(part) for part in np.split(eight, 20)])
    np.testing.assert_array_equal(got, actions)
    want = scorer.logits(eight[:500])
    np.testing.assert_allclose(exported.logits(eight[:500]), want, rtol=1e-5, atol=1e-4)
    assert len(np.unique(actions, axis=0)) > 16


@pytest.mark.parametrize("form", FORMS)
def test_a_batch_is_its_rows_one_by_one(form, tmp_path, eight):
    exported = write(form, tmp_path, make_network())
    whole = exported.decide(eight[:50])
    np.testing.assert_array_equal(np.concatenate([exported.decide(eight[i : i + 1]) for i in range(50)]), whole)
    assert whole.dtype == np.int64


@pytest.mark.parametrize("form", FORMS)
def test_what_the_policy_is_blind_to_the_form_is_too(form, tmp_path, eight):
    scorer = make_network(replace(SMALL, blind_to=("estimate", "latency", "queue")))
    exported = write(form, tmp_path, scorer)
    np.testing.assert_array_equal(exported.decide(eight[::10]), LearnedScheduler(scorer).predict(eight[::10])[0])


@needs_onnx
@pytest.mark.parametrize(
    "changes", [{"encoder": "flat"}, {"encoder": "attention"}, {"heads": "bilinear"}, {"heads": "independent"}], ids=str
)
def test_a_graph_knows_every_network(changes, tmp_path, eight):
    scorer = make_network(replace(SMALL, **changes))
    exported = write("onnx", tmp_path, scorer)
    np.testing.assert_array_equal(exported.decide(eight[::10]), LearnedScheduler(scorer).predict(eight[::10])[0])


def test_numpy_decides_on_machines_of_any_size(tmp_path):
    learned = LearnedScheduler(make_network())
    agreement = compare_forms(learned, write_numpy(tmp_path, learned.scorer), (2, 3), 300)
    assert agreement.count == 300
    assert agreement.differ == 0
    assert agreement.logit_difference < 1e-4


# Alone.


def test_the_module_needs_numpy_alone(tmp_path):
    write_numpy(tmp_path, make_network())
    tree = ast.parse((tmp_path / DECIDE).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in imported} - set(sys.stdlib_module_names) == {"numpy"}


def test_the_module_that_is_written_decides(tmp_path, eight):
    scorer = make_network()
    write_numpy(tmp_path, scorer)
    alone = runpy.run_path(str(tmp_path / DECIDE))
    actions = alone["Policy"].load(tmp_path / POLICY_NPZ).decide(eight[:200])
    np.testing.assert_array_equal(actions, LearnedScheduler(scorer).predict(eight[:200])[0])


def test_the_module_knows_rows_as_this_package_writes_them():
    assert list(export_decide.GROUPS.items()) == list(_FULL_GROUPS.items())
    assert export_decide.NUM_TASK_FEATURES == TaskFeature.COUNT
    for n in (1, 2, 8, 128):
        rows = np.zeros((1, ObservationLayout(n).size), np.float32)
        assert export_decide.num_nodes_of(rows) == n
    described = re.findall(r"^    (\w+) +(N x N|N|11) ", export_decide.__doc__ or "", re.MULTILINE)
    assert described == [(name, ("11", "N", "N x N")[axes]) for name, axes in export_decide.GROUPS.items()]


def test_numbers_that_decide_nothing_are_left_out(tmp_path):
    write_numpy(tmp_path, make_network())
    with np.load(tmp_path / POLICY_NPZ, allow_pickle=False) as file:
        assert not [name for name in file.files if name.startswith("value")]
        assert json.loads(str(file["about"]))["config"]["node_width"] == SMALL.node_width


# The command.


@pytest.mark.parametrize("form", FORMS)
def test_the_command_writes_compares_and_says_so(form, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(compare_forms, "__defaults__", (400,))
    Export(policy_file(tmp_path), form, nodes=3, out=tmp_path / "new" / form).run()
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"Same actions on 400 observations of machines of 3 nodes; .* a logit is \d\.\de-\d\d\.", said)
    names = {path.name for path in (tmp_path / "new" / form).iterdir()}
    assert names == ({POLICY_NPZ, DECIDE, "README.md"} if form == "numpy" else {POLICY_ONNX, "README.md"})
    readme = (tmp_path / "new" / form / "README.md").read_text()
    assert "trained on 'somewhere'" in readme
    assert "Same actions on 400 observations" in readme


def test_a_form_that_decides_otherwise_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_forms, "__defaults__", (100,))
    monkeypatch.setattr(export_forms, "CONSTANTS", export_forms.CONSTANTS | {"tie": 10.0})
    with pytest.raises(ValueError, match=r"must decide as the policy does, got other actions for \d+ of 100 obs"):
        Export(policy_file(tmp_path), "numpy", nodes=8, out=tmp_path / "out").run()
    assert not list((tmp_path / "out").iterdir())


def test_a_readme_that_is_not_of_an_export_is_not_lost(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_forms, "__defaults__", (100,))
    export = Export(policy_file(tmp_path), "numpy", nodes=3, out=tmp_path)
    export.run()
    export.run()  # its own may be written anew
    (tmp_path / "README.md").write_text("# Mine\n")
    with pytest.raises(ValueError, match=r"without a README\.md of its own, got '.*': name another"):
        export.run()
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


# How long a decision takes.


def test_every_form_is_timed_on_the_same_network(monkeypatch, eight, capsys):
    monkeypatch.setattr(bench_decisions, "CALLS", 20)
    times = bench_decisions.decision_times(eight[:64], 1)
    forms = {"Stable-Baselines3's predict", "numpy alone", "compiled", PricedGreedy.name}
    assert set(times) - {"ONNX Runtime"} == forms
    for row in times.values():
        assert 0.0 < row["p50_us"] <= row["p99_us"]
        assert row["batch_per_s"] > 0.0
    bench_decisions.print_decisions(Console(width=120), times)
    printed = capsys.readouterr().out
    assert "One decision, batch 1, one core" in printed
    assert all(name in printed for name in times)


def test_what_is_timed_decides_alike(tmp_path, eight):
    forms = bench_decisions._forms(ObservationLayout(8), tmp_path)
    rule, compiled = forms.pop(PricedGreedy.name)(eight[:500])[0], forms.pop("compiled")(eight[:500])[0]
    for decide in forms.values():
        got = decide(eight[:500])
        np.testing.assert_array_equal(got[0] if isinstance(got, tuple) else got, compiled)
    assert (rule != compiled).any()


# What is refused.


@pytest.mark.parametrize("nodes", [1, 0, -3, 65])
def test_sizes_that_are_not_drawn_are_refused(nodes, tmp_path):
    with pytest.raises(ValueError, match=rf"--nodes must be in 2\.\.64, got {nodes}"):
        Export(policy_file(tmp_path), "numpy", nodes=nodes, out=tmp_path).run()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"--out policy\.npz must be a file that can be written, got "):
        Export(policy_file(tmp_path), "numpy", out=tmp_path / "taken").run()


def test_a_policy_that_is_none_is_refused(tmp_path):
    (tmp_path / "p").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"not a safetensors file"):
        Export(tmp_path / "p", "numpy", out=tmp_path).run()


def test_networks_that_numpy_does_not_know_are_refused(tmp_path):
    path = policy_file(tmp_path, replace(SMALL, heads="independent"))
    with pytest.raises(ValueError, match=r"--format numpy: .*heads 'joint' alone, got 'independent'; --format onnx"):
        Export(path, "numpy", out=tmp_path / "out").run()


def test_a_package_that_is_missing_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export_forms, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"onnx must be installed for --format onnx: pip install 'numa-rl\[export\]'"):
        Export(policy_file(tmp_path), "onnx", out=tmp_path).run()


@pytest.mark.parametrize(
    ("rows", "rule"),
    [
        (np.zeros((1, 51)), r"must be float32 of shape \(B, size\), B >= 1, got float64"),
        (np.zeros(51, np.float32), r"must be float32 of shape \(B, size\), B >= 1, got float32 of shape \(51,\)"),
        (np.zeros((0, 51), np.float32), r"B >= 1, got float32 of shape \(0, 51\)"),
        ([1, 2], "rows must be a numpy array, got list"),
        (np.full((1, ObservationLayout(2).size), np.nan, np.float32), "rows must be finite"),
        (np.full((1, ObservationLayout(2).size), -5, np.float32), r"rows must be 0 or more, got -5\.0"),
        (np.full((1, ObservationLayout(2).size), 3e38, np.float32), "so large that logits overflow"),
        (np.zeros((1, ObservationLayout(2).size), np.float32), "an open placement, got none in row 0"),
        (np.zeros((1, 52), np.float32), r"no machine of up to 128 nodes has rows of 52 values"),
    ],
)
def test_the_module_refuses_rows_of_another_kind(rows, rule, tmp_path):
    with pytest.raises(ValueError, match=rule):
        write_numpy(tmp_path, make_network()).decide(rows)


def test_the_module_refuses_files_of_another_kind(tmp_path):
    path = tmp_path / "p.npz"
    np.savez(path, x=np.zeros(3))
    with pytest.raises(ValueError, match=r"must say format 'numa-rl policy for numpy 1', got None"):
        Policy.load(path)
    np.save(tmp_path / "p.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"must be an \.npz archive, got a single array"):
        Policy.load(tmp_path / "p.npy")
    path.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"allow_pickle=False|[Pp]ickle"):
        Policy.load(path)
    for content in (b"", b"PK\x03\x04cut"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"p\.npz: no policy: "):
            Policy.load(path)
    for about in ("[]", "{", "[" * 100_000, json.dumps({"format": export_decide.FORMAT})):
        np.savez(path, about=np.array(about))
        with pytest.raises(ValueError, match=r"p\.npz: no policy: "):
            Policy.load(path)
    with pytest.raises(FileNotFoundError):
        Policy.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    "change",
    [
        lambda arrays, about: arrays.pop("log_price"),
        lambda arrays, about: arrays.update({"mix.weight": arrays["mix.weight"][:, 1:]}),
        lambda arrays, about: arrays.update({"mix.weight": arrays["mix.weight"].astype(np.float64)}),
        lambda arrays, about: arrays.update({"score.weight": arrays["score.weight"] * np.float32(np.nan)}),
        lambda arrays, about: arrays.update({"log_scale": np.float32(200.0)}),
        lambda arrays, about: about.update(config=3),
        lambda arrays, about: about["config"].pop("alpha"),
        lambda arrays, about: about["constants"].update(tie="a"),
    ],
)
def test_the_module_refuses_files_that_it_could_not_decide_by(tmp_path, change):
    write_numpy(tmp_path, make_network())
    with np.load(tmp_path / POLICY_NPZ) as file:
        arrays = {name: file[name] for name in file.files}
    about = json.loads(str(arrays.pop("about")))
    Policy.load(tmp_path / POLICY_NPZ)
    change(arrays, about)
    np.savez(tmp_path / "p.npz", about=np.array(json.dumps(about)), **arrays)
    with pytest.raises(ValueError, match=r"p\.npz: no policy: "):
        Policy.load(tmp_path / "p.npz")


def test_a_file_damaged_anywhere_is_a_policy_or_refused(tmp_path):
    write_numpy(tmp_path, make_network())
    whole, rng = (tmp_path / POLICY_NPZ).read_bytes(), np.random.default_rng(0)
    path, refused = tmp_path / "p.npz", 0
    for _ in range(300):
        content = bytearray(whole)
        for place in rng.integers(len(whole), size=8):
            content[place] = rng.integers(256)
        path.write_bytes(content)
        try:
            Policy.load(path)
        except ValueError as error:
            refused += "no policy" in str(error)
    assert refused > 200

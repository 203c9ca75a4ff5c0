"""A policy in the forms that others can run: numbers for numpy with a module that decides, or an ONNX graph.

Dimension key: B rows, N nodes.

References:
    [1] https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from agents.ppo.config import as_json
from agents.ppo.scorer import CLOSED, MOST_PRICE, SMALLEST_COST, PairScorer, best_pair
from agents.ppo.scoring import refusal
from agents.ppo.scoring_kernel import TIE
from envs.observation import ObservationLayout
from envs.observation_kernel import Float32
from experiments import export_decide
from experiments.files import write_bytes

OPSET = 17
CONSTANTS = {"closed": CLOSED, "smallest_cost": SMALLEST_COST, "most_price": MOST_PRICE, "tie": float(TIE)}
ONLY_FOR_LEARNING = ("value.", "value_hidden.")  # weights that decide nothing
POLICY_NPZ, DECIDE, POLICY_ONNX = "policy.npz", "decide.py", "policy.onnx"


class Form(Protocol):
    """A policy in a form of its own."""

    def decide(self, rows: Float32) -> npt.NDArray[np.int64]:
        """(task node, data node) of each row, shape (B, 2)."""
        ...

    def logits(self, rows: Float32) -> Float32:
        """Logits of all pairs, shape (B, N N)."""
        ...


def write_numpy(folder: Path, scorer: PairScorer) -> Form:
    """Write the network's numbers and the module that decides by them; returns what reads them back.

    Raises:
        ValueError: the module does not know the network.
    """
    reason = refusal(scorer.config)
    if reason:
        raise ValueError(f"--format numpy: {reason.rstrip('.')}; --format onnx knows every network.")
    about = {"format": export_decide.FORMAT, "config": as_json(scorer.config), "constants": CONSTANTS}
    weights = {
        name: weight.numpy() for name, weight in scorer.state_dict().items() if not name.startswith(ONLY_FOR_LEARNING)
    }
    content = io.BytesIO()
    np.savez(content, about=np.array(json.dumps(about)), **_arrays(weights))
    write_bytes(folder / POLICY_NPZ, content.getvalue())
    write_bytes(folder / DECIDE, Path(export_decide.__file__).read_bytes())
    return export_decide.Policy.load(folder / POLICY_NPZ)


def _arrays(weights: Mapping[str, Float32]) -> dict[str, Any]:
    """Weights as `np.savez` wants them, whose own parameters have types."""
    return dict(weights)


def write_onnx(folder: Path, scorer: PairScorer, num_nodes: int) -> Form:
    """Write the network for machines of N nodes as a graph; returns what runs it.

    The graph is traced from the network itself, so it knows every configuration.

    Raises:
        ValueError: packages are missing, or the network does not know machines of N nodes.
    """
    require_onnx()
    module = _Decision(scorer, num_nodes).eval()
    rows = torch.zeros(1, ObservationLayout(num_nodes).size)
    batch = {name: {0: "batch"} for name in ("rows", "actions", "logits")}
    with TemporaryDirectory() as scratch, warnings.catch_warnings(), torch.no_grad():
        file = Path(scratch) / POLICY_ONNX
        # Checks of shapes are left out of the graph, which is what is wanted; and the exporter that is to replace
        # this one takes minutes for this network, and wants another package.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (rows,),
            file,
            dynamo=False,
            opset_version=OPSET,
            input_names=["rows"],
            output_names=["actions", "logits"],
            dynamic_axes=batch,
        )
        write_bytes(folder / POLICY_ONNX, file.read_bytes())
    return OnnxPolicy(folder / POLICY_ONNX)


class _Decision(nn.Module):
    """What the graph computes: actions and logits of rows."""

    def __init__(self, scorer: PairScorer, num_nodes: int) -> None:
        super().__init__()
        self.scorer, self.num_nodes = scorer, num_nodes

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Actions (B, 2) and logits (B, N N)."""
        logits, _ = self.scorer(rows)
        pair, num_nodes = best_pair(logits), self.num_nodes
        return torch.stack([pair.div(num_nodes, rounding_mode="floor"), pair % num_nodes], 1), logits


class OnnxPolicy:
    """A graph that ONNX Runtime runs on one thread.

    Args:
        path: of the graph.
    """

    def __init__(self, path: Path) -> None:
        """Read the graph."""
        onnxruntime: Any = import_module("onnxruntime")  # it says nothing of its types
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def decide(self, rows: Float32) -> npt.NDArray[np.int64]:
        """See `Form.decide`."""
        return np.asarray(self._session.run(["actions"], {"rows": rows})[0])

    def logits(self, rows: Float32) -> Float32:
        """See `Form.logits`."""
        return np.asarray(self._session.run(["logits"], {"rows": rows})[0])


def require_onnx() -> None:
    """Raise ValueError unless ONNX graphs can be written and run here."""
    for name in ("onnx", "onnxruntime"):
        if find_spec(name) is None:
            raise ValueError(f"{name} must be installed for --format onnx: pip install 'numa-rl[export]'.")

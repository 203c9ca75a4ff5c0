"""A critic that knows more than the policy may: what the rest of the episode will ask for.

What a state is worth depends mostly on the tasks that are still to come, which no placement changes. A critic that
is told of them explains that part of the returns away, and stays a baseline: it does not depend on the decision [1].
Only training asks it; the policy never does.

Dimension key: B states, E episodes, T tasks of an episode, W windows, F features.

References:
    [1] H. Mao, S. B. Venkatakrishnan, M. Schwarzkopf, M. Alizadeh, "Variance reduction for reinforcement learning in
        input-driven environments", ICLR 2019.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from envs.observation import ObservationLayout
from envs.observation_kernel import Float32
from numa_rl.workloads.workload import Workload

WINDOWS = (5, 20, 60)  # tasks ahead; the last is about as long as a placement is felt
WIDTH = 64
LEARNING_RATE = 2e-3
BATCH = 1024
PASSES = 2  # over a rollout

I64 = npt.NDArray[np.int64]


class Future:
    """What the next tasks of every episode ask for, looked up by episode and task.

    For each window: arithmetic and bytes of its tasks, and the time in which they arrive, each over the mean of all
    windows of that length, and the share of the window that the episode still has.

    Args:
        workload: the episodes.
    """

    def __init__(self, workload: Workload) -> None:
        """Sum up every window of every episode."""
        self._table = np.concatenate([_window(workload, length) for length in WINDOWS], axis=2)  # (E, T + 1, F)

    @property
    def num_features(self) -> int:
        """F."""
        return int(self._table.shape[2])

    def features(self, episode: npt.NDArray[np.integer], task: npt.NDArray[np.integer]) -> Float32:
        """What is to come from a task of an episode on, itself included, shape (..., F); zeros after the last."""
        found: Float32 = self._table[episode, task]
        return found


def _window(workload: Workload, length: int) -> Float32:
    """Features of the next `length` tasks from each one on, shape (E, T + 1, 4)."""
    num_tasks = workload.num_tasks
    first = np.arange(num_tasks + 1)
    last = np.minimum(first + length, num_tasks)
    moved = workload.bytes.astype(np.float64) + workload.input_bytes.sum(axis=2, dtype=np.float64)
    gap_s = np.diff(workload.arrival_s, axis=1, prepend=workload.arrival_s[:, :1])
    sums = []
    for values in (workload.flops.astype(np.float64), moved, gap_s):
        total = np.concatenate([np.zeros((len(values), 1)), values.cumsum(axis=1)], axis=1)
        window = total[:, last] - total[:, first]
        sums.append(np.log1p(window / max(float(window.mean()), 1e-300)))
    left = np.broadcast_to((last - first) / length, sums[0].shape)
    return np.stack([*sums, left], axis=2).astype(np.float32)


def pooled(observation: Tensor, layout: ObservationLayout) -> Tensor:
    """Mean and maximum of each group of the rows, and the task as it is, on a logarithmic scale, shape (B, G)."""
    parts = []
    for name, values in layout.split(torch.log1p(observation)).items():
        flat = values.flatten(1)
        parts += [flat] if name == "task" else [flat.mean(1, keepdim=True), flat.amax(1, keepdim=True)]
    return torch.cat(parts, 1)


class Critic(nn.Module):
    """Value of a state, from a summary of its observation and of what is to come.

    Args:
        layout: of the observation.
        future: of the episodes; None for a critic that knows no more than the policy.
    """

    def __init__(self, layout: ObservationLayout, future: Future | None) -> None:
        """Make the layers; the last one starts at zero."""
        super().__init__()
        self.layout = layout
        self.future = future
        inputs = pooled(torch.zeros(1, layout.size), layout).shape[1] + (future.num_features if future else 0)
        last = nn.Linear(WIDTH, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.layers = nn.Sequential(nn.Linear(inputs, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), last)
        self.optimizer = torch.optim.Adam(self.layers.parameters(), lr=LEARNING_RATE)

    def inputs(self, observation: Float32, episode: npt.NDArray[np.integer], task: npt.NDArray[np.integer]) -> Tensor:
        """What it reads of states, shape (B, ...)."""
        parts = [pooled(torch.from_numpy(observation), self.layout)]
        if self.future is not None:
            parts.append(torch.from_numpy(self.future.features(episode, task)))
        return torch.cat(parts, 1)

    @torch.no_grad()
    def values(self, inputs: Tensor) -> Float32:
        """Values, shape (B,)."""
        found: Float32 = self.layers(inputs).squeeze(1).numpy()
        return found

    def fit(self, inputs: Tensor, returns: Float32) -> float:
        """Learn from what states turned out to be worth; returns the mean loss."""
        wanted, losses = torch.from_numpy(returns), []
        for _ in range(PASSES):
            for batch in torch.split(torch.randperm(len(wanted)), BATCH):
                loss = nn.functional.mse_loss(self.layers(inputs[batch]).squeeze(1), wanted[batch])
                self.optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                self.optimizer.step()
                losses.append(loss.item())
        return float(np.mean(losses))

"""A small decision tree that says in which situations something is so, and how far the tree is to be trusted.

It is fitted to some episodes and judged on others: decisions of one episode resemble each other.

Dimension key: E episodes, S samples, F features, K classes.

References:
    [1] L. Breiman, J. Friedman, R. Olshen, C. Stone, "Classification and regression trees", 1984.
    [2] F. Pedregosa et al., "Scikit-learn: machine learning in Python", JMLR 12, 2011.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

MOST_DEPTH = 3
FEWEST_IN_LEAF = 10  # samples, or
LEAF_SHARE = 0.01  # this share of them
NO_FEATURE = -1


@dataclass(frozen=True)
class Leaf:
    """One situation, and what was so in it.

    Attributes:
        above: by feature, the value that it is above.
        at_most: by feature, the value that it does not exceed.
        label: what the tree says.
        rows: the held-out samples in it, by index.
    """

    above: Mapping[int, float]
    at_most: Mapping[int, float]
    label: int
    rows: I64


@dataclass(frozen=True)
class Fidelity:
    """How well a tree foretells held-out samples.

    Attributes:
        accuracy: share of them foretold.
        majority: the same of who always says what was most frequent where the tree was fitted.
        balanced: mean over the classes there are of the share foretold; of who always says one thing, 1 / classes.
        classes: how many classes the held-out samples have.
    """

    accuracy: float
    majority: float
    balanced: float
    classes: int


@dataclass(frozen=True)
class SmallTree:
    """A fitted tree.

    Attributes:
        leaves: every situation, from left to right.
        fidelity: on held-out samples.
        num_fitted: samples that it was fitted to.
        num_held_out: samples that it was judged on.
    """

    leaves: tuple[Leaf, ...]
    fidelity: Fidelity
    num_fitted: int
    num_held_out: int


def fit_tree(
    features: F64, labels: I64, held_out: npt.NDArray[np.bool_], *, depth: int = MOST_DEPTH
) -> SmallTree | None:
    """Fit a tree to some samples, every class as heavy as the others, and judge it on the rest [1, 2].

    Args:
        features: shape (S, F).
        labels: which class each sample has, 0 or above, shape (S,).
        held_out: which samples judge and are not fitted to, shape (S,).
        depth: of the tree, at most.

    Returns:
        The tree; None where there are fewer than two classes to fit, too few samples for two leaves, or none to judge.

    Raises:
        ValueError: shapes differ, a feature is not finite, or the depth is below 1.
    """
    if features.ndim != 2 or not features.shape[:1] == labels.shape == held_out.shape:
        raise ValueError(
            f"features, labels and held_out must have one row for each sample, got shapes {features.shape}, "
            f"{labels.shape} and {held_out.shape}."
        )
    if not np.isfinite(features).all():
        raise ValueError("features must be finite, got NaN or infinity.")
    if depth < 1:
        raise ValueError(f"depth must be >= 1, got {depth}.")
    fitted = ~held_out
    least = max(FEWEST_IN_LEAF, int(LEAF_SHARE * fitted.sum()))
    if len(np.unique(labels[fitted])) < 2 or fitted.sum() < 2 * least or not held_out.any():
        return None
    from sklearn.tree import DecisionTreeClassifier  # takes seconds

    model = DecisionTreeClassifier(
        max_depth=depth, min_samples_leaf=least, class_weight="balanced", random_state=0
    ).fit(features[fitted], labels[fitted])
    rows = np.flatnonzero(held_out)
    return SmallTree(
        _leaves(model, features, rows),
        fidelity(labels[rows], model.predict(features[rows]), labels[fitted]),
        int(fitted.sum()),
        len(rows),
    )


def fidelity(labels: I64, foretold: I64, fitted: I64) -> Fidelity:
    """How well labels (S,) are foretold, and how well by the most frequent of those that were fitted to."""
    right = labels == foretold
    classes = np.unique(labels)
    return Fidelity(
        accuracy=float(right.mean()),
        majority=float((labels == np.bincount(fitted).argmax()).mean()),
        balanced=float(np.mean([right[labels == each].mean() for each in classes])),
        classes=len(classes),
    )


def _leaves(model: Any, features: F64, rows: I64) -> tuple[Leaf, ...]:
    """The leaves of scikit-learn's tree with the held-out samples in them."""
    tree = model.tree_
    where = model.apply(features[rows])
    found: list[Leaf] = []

    def walk(node: int, above: dict[int, float], at_most: dict[int, float]) -> None:
        feature, limit = int(tree.feature[node]), float(tree.threshold[node])
        if tree.children_left[node] == NO_FEATURE:
            label = int(model.classes_[tree.value[node][0].argmax()])
            found.append(Leaf(above, at_most, label, rows[where == node]))
            return
        walk(int(tree.children_left[node]), above, at_most | {feature: limit})
        walk(int(tree.children_right[node]), above | {feature: limit}, at_most)

    walk(0, {}, {})
    return tuple(found)

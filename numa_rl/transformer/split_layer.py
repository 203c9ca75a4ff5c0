"""A whole layer of attention over nodes, in numpy: the projections too, with all weights or those of a node's heads.

With all weights, nodes project their home tokens and exchange heads. With the weights of its heads a node gathers X of
its row, projects all of it, and multiplies its heads' outputs by its rows of W_O, which gives its share of Y; the
shares of a row are added up where their tokens are at home. What lies between is
`numa_rl.transformer.blocked_attention`.

Dimension key: B sequences of L tokens of width d, H heads and G heads of keys and values of size d_k.

References:
    [1] The chapter, section 16.3.1: attention split by head.
    [2] M. Shoeybi et al., "Megatron-LM: training multi-billion parameter language models using model parallelism",
        2019: W_Q, W_K and W_V by columns, W_O by rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from numa_rl.topology import IntArray
from numa_rl.transformer.attention import AttentionShape, AttentionSplit
from numa_rl.transformer.blocked_attention import (
    DEFAULT_BLOCK_TOKENS,
    Counter,
    DistributedAttention,
    Node,
    attend,
    divide_sums,
    done,
    exchange_heads,
    grid_of_nodes,
    return_heads,
    row_of,
)
from numa_rl.transformer.online_softmax import Array, plain_attention


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The matrices of a layer.

    Attributes:
        q: W_Q, shape (d, H d_k) with H d_k = d.
        k: W_K, shape (d, G d_k).
        v: W_V, likewise.
        o: W_O, shape (H d_k, d).
    """

    q: Array
    k: Array
    v: Array
    o: Array


def plain_layer(x: Array, weights: LayerWeights, shape: AttentionShape) -> npt.NDArray[np.float64]:
    """The layer with all scores at once, shape (B, L, d); arguments are those of `split_layer`."""
    q, k, v = (_heads(x @ matrix, shape) for matrix in (weights.q, weights.k, weights.v))
    return np.asarray(_joined(plain_attention(q, k, v, causal=shape.causal)) @ weights.o)


def split_layer(
    x: Array,
    weights: LayerWeights,
    shape: AttentionShape,
    split: AttentionSplit,
    *,
    block_tokens: int = DEFAULT_BLOCK_TOKENS,
) -> DistributedAttention:
    """The layer over the nodes of a split; the output has the shape of X, and what is held includes X and weights.

    Args:
        x: X, shape (B, L, d), of which each node first has its home tokens.
        weights: the matrices.
        shape: sizes, of elements too.
        split: how heads, tokens and weights are cut.
        block_tokens: queries, and keys, of a tile of scores.

    Raises:
        ValueError: the split does not fit, or an array is not of the shape or element size that it must be.
    """
    _check(x, weights, shape)
    nodes = grid_of_nodes(shape, split)
    for node in nodes:
        node.hold(x=x[:, node.tokens[node.home]], **_matrices(node, weights, shape, split))
    if split.gathers:
        exchange = _gather(nodes, split, shape)
    else:
        _project(nodes, shape)
        exchange = exchange_heads(nodes, split)
    steps = attend(nodes, split, shape.causal, block_tokens)
    divide_sums(nodes, x.dtype)
    if split.gathers:
        back = _sum_up(nodes, split)
    else:
        back = return_heads(nodes, split)
        for node in nodes:
            node.hold(y=_joined(node.drop("output")[0]) @ node["w_o"])
    output = np.empty_like(x)
    for node in nodes:
        output[:, node.tokens[node.home]] = node["y"]
    return done(nodes, output, exchange, steps, back)


def _check(x: Array, weights: LayerWeights, shape: AttentionShape) -> None:
    """Raise ValueError unless arrays are those of the shape."""
    d, kv_width = shape.width, shape.layer.num_kv_heads * shape.layer.key_dim
    wanted = {"x": (shape.batch, shape.tokens, d), "q": (d, d), "k": (d, kv_width), "v": (d, kv_width), "o": (d, d)}
    for name, size in wanted.items():
        array = x if name == "x" else getattr(weights, name)
        if array.shape != size or array.dtype != x.dtype or array.itemsize != shape.bytes_per_element:
            raise ValueError(
                f"{name} must have shape {size}, and like x elements of {shape.bytes_per_element} bytes, "
                f"got {array.shape} of {array.dtype}."
            )


def _heads(projected: Array, shape: AttentionShape) -> Array:
    """From (B, n, heads x d_k) to (B, heads, n, d_k)."""
    b, n, width = projected.shape
    return projected.reshape(b, n, width // shape.layer.key_dim, shape.layer.key_dim).swapaxes(1, 2)


def _joined(heads: Array) -> Array:
    """From (B, heads, n, d_k) to (B, n, heads x d_k)."""
    b, count, n, size = heads.shape
    return heads.swapaxes(1, 2).reshape(b, n, count * size)


def _matrices(node: Node, weights: LayerWeights, shape: AttentionShape, split: AttentionSplit) -> dict[str, Array]:
    """A node's own copies of the weights that it has."""
    if not split.gathers:
        return {"w_q": weights.q.copy(), "w_k": weights.k.copy(), "w_v": weights.v.copy(), "w_o": weights.o.copy()}
    size = shape.layer.key_dim
    own, keys = (slice(part.start * size, part.stop * size) for part in (node.heads, node.kv_heads))
    return {
        "w_q": weights.q[:, own].copy(),
        "w_k": weights.k[:, keys].copy(),
        "w_v": weights.v[:, keys].copy(),
        "w_o": weights.o[own].copy(),
    }


def _project(nodes: list[Node], shape: AttentionShape) -> None:
    """All heads of every node's home tokens."""
    for node in nodes:
        node.hold(**{f"{name}_home": _heads(node["x"] @ node[f"w_{name}"], shape) for name in "qkv"})


def _gather(nodes: list[Node], split: AttentionSplit, shape: AttentionShape) -> IntArray:
    """Every node's own heads of all tokens of its row, of which it reads X."""
    counter = Counter(len(nodes))
    for node in nodes:
        row = row_of(nodes, split, node.row)
        others = {f"x_{other.index}": counter.read(node, other, other["x"]) for other in row if other is not node}
        node.hold(**others)
        x = np.concatenate([node["x"] if other is node else others[f"x_{other.index}"] for other in row], axis=1)
        node.hold(**{name: _heads(x @ node[f"w_{name}"], shape) for name in "qkv"})
        node.drop(*others)
    return counter.bytes


def _sum_up(nodes: list[Node], split: AttentionSplit) -> IntArray:
    """From the shares that the heads of a row have in Y, nodes come to all of it for their home tokens."""
    counter = Counter(len(nodes))
    for node in nodes:
        node.hold(share=_joined(node["of_heads"]) @ node["w_o"])
        node.drop("of_heads")
    for node in nodes:
        node.hold(y=node["share"][:, node.home].copy())
        for other in row_of(nodes, split, node.row):
            if other is not node:
                node.hold(piece=counter.read(node, other, other["share"][:, node.home]))
                node.hold(y=node["y"] + node["piece"])
                node.drop("piece")
    for node in nodes:
        node.drop("share")
    return counter.bytes

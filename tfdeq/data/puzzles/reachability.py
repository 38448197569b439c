"""Reachability: which nodes of a directed graph can be reached from a source.

The source is reached, and so is j if i is reached and there is an edge i -> j. The answer is the least
fixed point of this rule, which reads the input at every place, and a node needs as many applications as
it is hops away from the source. Sorting a list has no such rule: exchanges keep the list only in the
state, and every sorted list is a fixed point, independent of the input.
"""

import numpy as np
import tensorflow as tf

from tfdeq.data.puzzles.numbers import below, mixed, raw_numbers, uniform
from tfdeq.data.puzzles.puzzle import checked_grade, checked_size

NO_EDGE, EDGE, NODE, SOURCE = range(4)
GRADES = ("near", "middle", "far")


def make(
    count: int, size: int, seed: int, grade: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes sparse directed graphs in which about half of the nodes can be reached.

    The grade is the distance of the farthest node that can be reached: up to n / 6 hops ("near"), up to
    n / 3 ("middle"), or up to 2 n / 3 - 1 ("far"). None: all of these distances, equally likely. A
    hidden path has that length, and other nodes are attached to it. Random edges, one per node, do not
    shorten a path or reach a new node. The nodes that cannot be reached are connected in the same way.
    The order of the nodes is random.

    Args:
        count: N. size: n >= 6 nodes. seed: any 64-bit integer. grade: one of `GRADES`, or None.

    Returns:
        (graphs, answers), both [N, n, n] int32. Graphs: 1 for an edge i -> j, else 0; on the diagonal 2
        for a node, 3 for the source. Answers: 1 at [i, j] where i can be reached and i = j or i -> j.

    Raises:
        ValueError: for fewer nodes, or another grade.
    """
    checked_size("reachability", size, size >= 6, "6 or more")
    bounds = [0, size // 6, size // 3, 2 * size // 3 - 1]
    which = (
        slice(None)
        if checked_grade("reachability", grade, GRADES) is None
        else slice(GRADES.index(grade), GRADES.index(grade) + 2)
    )
    fewest, most = bounds[which][0] + 1, bounds[which][-1]
    stream = raw_numbers(f"reachability {grade}", seed, size)
    raw = stream.random_raw(count * (size * size + 2 * size + 2)).reshape(count, -1)
    hops = fewest + below(raw[:, 0], most - fewest + 1)
    least = np.maximum(hops + 1, size // 3)
    reached = least + below(raw[:, 1], np.maximum(2 * size // 3 - least, 0) + 1)
    edges, distance = _trees(hops, reached, raw[:, 2 : size + 2])
    chance = uniform(raw[:, 2 * size + 2 :]).reshape(count, size, size) < 1 / size
    # No edge leads farther than to the next distance; nodes that cannot be reached have distances
    # above n.
    edges |= chance & (distance[:, None, :] <= distance[:, :, None] + 1)
    edges &= ~np.eye(size, dtype=bool)
    graphs = edges.astype(np.int32)
    graphs[:, np.arange(size), np.arange(size)] = NODE
    graphs[:, 0, 0] = SOURCE
    order = np.argsort(raw[:, size + 2 : 2 * size + 2], axis=1, kind="stable")
    graphs = np.take_along_axis(graphs, order[:, :, None], axis=1)
    graphs = np.take_along_axis(graphs, order[:, None, :], axis=2)
    return graphs, solve(graphs)


def _trees(hops: np.ndarray, reached: np.ndarray, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns two trees in each graph, of reachable and unreachable nodes, and the distances.

    Args:
        hops, reached: [N] int64. raw: [N, n] uint64.

    Returns:
        (edges [N, n, n] bool, distance from node 0 [N, n] int64, 2 n if unreachable).
    """
    count, size = raw.shape
    every = np.arange(count)
    edges = np.zeros((count, size, size), bool)
    distance = np.full((count, size), 2 * size)
    distance[:, 0] = 0
    for node in range(1, size):
        # A node of the path follows the previous one; other nodes are attached to one below the
        # last distance.
        within = node < reached
        hung = below(raw[:, node], np.where(within, hops, np.maximum(node - reached, 1)))
        apart = reached + np.where(raw[:, node] % np.uint64(4) == 0, hung, node - 1 - reached)
        parent = np.where(within, np.where(node <= hops, node - 1, hung), apart)
        joined = node != reached  # the first unreachable node is the root of a tree
        edges[every[joined], parent[joined], node] = True
        distance[within, node] = distance[every[within], parent[within]] + 1
    return edges, distance


def solve(graphs: np.ndarray) -> np.ndarray:
    """Returns the answers of graphs, both [N, n, n], int32."""
    edges, reached = graphs == EDGE, np.diagonal(graphs, axis1=1, axis2=2) == SOURCE
    while True:
        more = reached | (reached[:, :, None] & edges).any(axis=1)
        if (more == reached).all():
            break
        reached = more
    own = np.eye(graphs.shape[1], dtype=bool)
    return (reached[:, :, None] & (edges | own)).astype(np.int32)


def distances(graphs: np.ndarray) -> np.ndarray:
    """Returns the hops from the source to each node, [N, n] int64; -1 for unreachable nodes."""
    edges, reached = graphs == EDGE, np.diagonal(graphs, axis1=1, axis2=2) == SOURCE
    hops = np.where(reached, 0, -1)
    for step in range(1, graphs.shape[1]):
        new = (reached[:, :, None] & edges).any(axis=1) & ~reached
        hops[new], reached = step, reached | new
    return hops


def check(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns [N] bool: which answers are exactly the nodes and edges reachable from the source."""
    return (solve(np.asarray(inputs)) == np.asarray(answers)).all(axis=(1, 2))


def augment(inputs: tf.Tensor, targets: tf.Tensor, seed: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Puts the nodes of each graph in a random order.

    Args:
        inputs, targets: [B, n, n] int32. seed: [2] int32.

    Returns:
        Inputs and targets of the reordered graphs.
    """
    raw = tf.random.stateless_uniform(
        tf.shape(inputs)[:2], seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    order = tf.argsort(raw, stable=True)
    turned = [
        tf.gather(tf.gather(x, order, axis=1, batch_dims=1), order, axis=2, batch_dims=1)
        for x in (inputs, targets)
    ]
    return turned[0], turned[1]


def key(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns [N] uint64, equal for graphs that are the same up to the order of the nodes.

    The colour of each node is computed from its kind and the colours of its successors and
    predecessors, repeated n times. Graphs that this cannot distinguish also have equal keys, and count
    as the same.
    """
    del targets
    inputs = np.asarray(inputs)
    edges = inputs == EDGE
    colours = mixed(np.diagonal(inputs, axis1=1, axis2=2))
    for _ in range(inputs.shape[1]):
        after = np.where(edges, colours[:, None, :], 0).sum(axis=2, dtype=np.uint64)
        before = np.where(edges, colours[:, :, None], 0).sum(axis=1, dtype=np.uint64)
        colours = mixed(colours + 3 * mixed(after) + 7 * mixed(before))
    return mixed(colours.sum(axis=1, dtype=np.uint64))

"""Where to draw the nodes of a network: by stress majorisation (Gansner, Koren and North, Graph drawing by stress
majorization, 2004). Pure and deterministic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

MAX_NODES = 300
_ITERATIONS = 200


def edges_of(link_names: Iterable[str]) -> list[tuple[str, str]]:
    """Links are named ``a-b``; other names are left out."""
    return [(a, b) for name in link_names for a, dash, b in [name.partition("-")] if dash and a and b and a != b]


def distances(nodes: Sequence[str], edges: Iterable[tuple[str, str]]) -> Floats:
    """Hops between all pairs; what cannot be reached is as far as the number of nodes."""
    at = {node: number for number, node in enumerate(nodes)}
    count = len(nodes)
    hops = np.full((count, count), float(count))
    np.fill_diagonal(hops, 0)
    for a, b in edges:
        hops[at[a], at[b]] = hops[at[b], at[a]] = 1
    for middle in range(count):
        hops = np.minimum(hops, hops[:, middle : middle + 1] + hops[middle])
    return hops


def positions(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """A place for each node, both coordinates from 0 to 1, the wider spread to the right."""
    if not nodes:
        return {}
    if len(nodes) == 1:
        return {nodes[0]: (0.5, 0.5)}
    wanted = distances(nodes, edges)
    places = _majorise(_classical_scaling(wanted), wanted)
    places -= places.mean(axis=0)
    _, _, axes = np.linalg.svd(places, full_matrices=False)
    places = places @ axes.T
    places = places[:, :2]
    for column in range(2):  # one of the mirror images, always the same
        if places[0, column] > 0:
            places[:, column] *= -1
    span = places.max(axis=0) - places.min(axis=0)
    span[span < 1e-9] = 1
    scaled = (places - places.min(axis=0)) / span
    if len(set(np.round(places[:, 1], 6))) == 1:
        scaled[:, 1] = 0.5
    return {node: (float(x), float(y)) for node, (x, y) in zip(nodes, scaled, strict=True)}


def _classical_scaling(wanted: Floats) -> Floats:
    count = len(wanted)
    centre = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(-centre @ wanted**2 @ centre / 2)
    order = np.argsort(values)[::-1][:2]
    found: Floats = vectors[:, order] * np.sqrt(np.maximum(values[order], 0))
    # Nodes that classical scaling puts on top of each other have to come apart somehow.
    spread = np.random.default_rng(1).normal(0, 0.05, found.shape)
    placed: Floats = found + spread
    return placed


def _majorise(places: Floats, wanted: Floats) -> Floats:
    count = len(wanted)
    weights = np.where(wanted > 0, 1 / np.maximum(wanted, 1e-9) ** 2, 0)
    laplacian = np.diag(weights.sum(axis=1)) - weights
    inverse = np.linalg.pinv(laplacian)
    for _ in range(_ITERATIONS if count <= MAX_NODES // 3 else _ITERATIONS // 8):
        apart = np.linalg.norm(places[:, None] - places[None], axis=2)
        factor = np.where(apart > 1e-9, weights * wanted / np.maximum(apart, 1e-9), 0)
        places = inverse @ ((np.diag(factor.sum(axis=1)) - factor) @ places)
    return places

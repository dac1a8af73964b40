"""Background removal without a model: GrabCut (Rother et al. 2004), in numpy and scipy. H rows, W columns, P pixels.

Colours of the object and of the background are two Gaussian mixtures. The cut is the labelling with the least sum of how badly
each pixel fits its mixture and of what its border costs, little along strong edges; it and the mixtures are found in turn.
"""

import numpy as np
import torch
from scipy import ndimage, sparse
from scipy.cluster.vq import kmeans2
from scipy.sparse import csgraph

from nerf.data.image_store import resample

SIDE = 224  # pixels of the longer side of the picture that is cut
COMPONENTS = 5  # of each mixture, as in the paper
SMOOTHNESS = 50.0  # gamma of the paper
ROUNDS = 5
FRAME = 0.03  # share of the shorter side whose pixels at the border are taken for background at first
INLIERS = 0.9  # share of those pixels that the background really is, where the object reaches the border
CAPACITY = 1000.0  # integer units of the cut's costs
HARD = 1000.0  # cost that no label is worth, before units
VARIANCE = 1e-4  # added to the variance of colours in [0, 1], so that a plain background has one
_NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


class Mixture:
    """Gaussian mixture of colours, each pixel in its likeliest component alone (as in the paper, sec. 3.1).

    Args:
        colours: [P, 3] in [0, 1], P at least 1.
        seed: of the first clusters.
    """

    def __init__(self, colours: np.ndarray, seed: int = 0):
        count = min(COMPONENTS, len(np.unique(colours[:2000], axis=0)))
        _, label = kmeans2(colours, count, minit="++", seed=seed) if count > 1 else (None, np.zeros(len(colours), int))
        self._fit(colours, label)

    def refit(self, colours: np.ndarray) -> None:
        """Move the components to colours [P, 3], each to those that it fits best."""
        self._fit(colours, self._distances(colours).argmin(1))

    def _fit(self, colours: np.ndarray, label: np.ndarray) -> None:
        found = []
        for k in np.unique(label):
            inside = colours[label == k]
            mean = inside.mean(0)
            covariance = (inside - mean).T @ (inside - mean) / len(inside) + VARIANCE * np.eye(3)
            cost = 0.5 * np.log(np.linalg.det(covariance)) - np.log(len(inside) / len(colours))
            found.append((mean, np.linalg.inv(covariance), cost))
        self._components = found

    def _distances(self, colours: np.ndarray) -> np.ndarray:
        """[P, K] negative logarithms of weighted densities, up to a constant."""
        costs = []
        for mean, precision, cost in self._components:
            offset = colours - mean
            costs.append(cost + 0.5 * np.einsum("pi,ij,pj->p", offset, precision, offset))
        return np.stack(costs, 1)

    def cost(self, colours: np.ndarray) -> np.ndarray:
        """How badly each colour [P, 3] fits, [P]: the least over the components (eq. 9)."""
        return np.asarray(self._distances(colours).min(1))


def grabcut(rgb: np.ndarray, seed: int = 0) -> np.ndarray:
    """Opacity of the object in a picture whose background reaches its border on most sides.

    Args:
        rgb: [H, W, 3] float in [0, 1].
        seed: of the clusters that the mixtures begin with.

    Returns:
        [H, W] in [0, 1]; soft at the outline. All 0 where nothing differs from the border.
    """
    height, width = rgb.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    small = _resized(rgb, max(round(height * scale), 1), max(round(width * scale), 1))
    inside = _cut(small, seed)
    alpha = _resized(inside.astype(float)[..., None], height, width)[..., 0]
    radius = max(round(2 / scale), 2)
    return np.asarray(guided_filter(rgb, alpha, radius))


def _cut(rgb: np.ndarray, seed: int) -> np.ndarray:
    """The pixels [H, W] bool of the object in a small picture."""
    height, width = rgb.shape[:2]
    colours, frame = rgb.reshape(-1, 3), _frame(height, width).reshape(-1)
    behind = Mixture(colours[frame], seed)
    fit = behind.cost(colours)
    trusted = frame & (fit <= np.quantile(fit[frame], INLIERS))
    behind = Mixture(colours[trusted], seed)
    fit = behind.cost(colours)
    object_like = ~trusted & (fit > np.quantile(fit[trusted], 0.99) + 1.0)
    if not object_like.any():
        return np.zeros((height, width), bool)
    front = Mixture(colours[object_like], seed)
    edges = _border_costs(rgb)
    inside = object_like
    for _ in range(ROUNDS):
        before = inside
        inside = _minimum_cut(front.cost(colours), np.where(trusted, -HARD, behind.cost(colours)), edges)
        if not inside.any() or (inside == before).all():
            break
        front.refit(colours[inside])
        behind.refit(colours[~inside])
    return inside.reshape(height, width)


def _frame(height: int, width: int) -> np.ndarray:
    """The pixels [H, W] bool near the border."""
    near = max(round(FRAME * min(height, width)), 1)
    frame = np.ones((height, width), bool)
    frame[near:-near, near:-near] = False
    return frame


def _border_costs(rgb: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(pixel, neighbour, cost) of a border between them, for each of the directions to a neighbour (eq. 11)."""
    height, width = rgb.shape[:2]
    index = np.arange(height * width).reshape(height, width)
    pairs = []
    for down, right in _NEIGHBOURS:
        left = max(-right, 0)
        one = (slice(0, height - down), slice(left, width - max(right, 0)))
        two = (slice(down, height), slice(left + right, width if right >= 0 else width + right))
        squared = ((rgb[one] - rgb[two]) ** 2).sum(-1).reshape(-1)
        pairs.append((index[one].reshape(-1), index[two].reshape(-1), squared, np.hypot(down, right)))
    mean = max(float(np.concatenate([squared for _, _, squared, _ in pairs]).mean()), 1e-8)
    return [(a, b, SMOOTHNESS * np.exp(-squared / (2 * mean)) / length) for a, b, squared, length in pairs]


def _minimum_cut(object_cost: np.ndarray, background_cost: np.ndarray, edges: list) -> np.ndarray:
    """The labelling [P] bool (True: object) of least cost.

    Args:
        object_cost: [P] of the label object.
        background_cost: [P] of the label background.
        edges: of :func:`_border_costs`.
    """
    count = len(object_cost)
    source, sink = count, count + 1
    prefers_object = np.clip(background_cost - object_cost, -HARD, HARD)  # only the difference matters
    pixels = np.arange(count)
    rows = [np.full(count, source), pixels, *(x for a, b, _ in edges for x in (a, b))]
    columns = [pixels, np.full(count, sink), *(x for a, b, _ in edges for x in (b, a))]
    costs = [prefers_object.clip(0), (-prefers_object).clip(0), *(x for _, _, c in edges for x in (c, c))]
    capacity = np.round(np.concatenate(costs) * CAPACITY).astype(np.int32)
    place = (np.concatenate(rows), np.concatenate(columns))
    graph = sparse.csr_matrix((capacity, place), shape=(count + 2, count + 2))
    residual = graph - csgraph.maximum_flow(graph, source, sink).flow
    residual.data[residual.data < 0] = 0
    residual.eliminate_zeros()
    reached = csgraph.breadth_first_order(residual, source, return_predecessors=False)
    inside = np.zeros(count + 2, bool)
    inside[reached] = True
    return inside[:count]


def guided_filter(guide: np.ndarray, values: np.ndarray, radius: int, smoothing: float = 1e-4) -> np.ndarray:
    """Values [H, W] moved to the edges of a picture [H, W, 3] (He et al. 2013, eq. 19 and 20), clipped to [0, 1].

    Args:
        guide: colours in [0, 1].
        values: in [0, 1].
        radius: half the side of the windows, pixels.
        smoothing: variance of colour below which a window is flat.
    """

    def mean(plane: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.uniform_filter(plane, size=(2 * radius + 1, 2 * radius + 1, *[1] * (plane.ndim - 2))))

    mean_guide, mean_values = mean(guide), mean(values)
    outer = (guide[..., :, None] * guide[..., None, :]).reshape(*guide.shape[:2], 9)
    variance = mean(outer).reshape(*guide.shape[:2], 3, 3) - mean_guide[..., :, None] * mean_guide[..., None, :]
    covariance = mean(guide * values[..., None]) - mean_guide * mean_values[..., None]
    slope = np.linalg.solve(variance + smoothing * np.eye(3), covariance[..., None])[..., 0]
    offset = mean_values - (slope * mean_guide).sum(-1)
    return np.clip((mean(slope) * guide).sum(-1) + mean(offset), 0.0, 1.0)


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A picture [h, w, C] at another size, with antialiasing."""
    planes = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(2, 0, 1)
    return np.asarray(resample(planes, height, width).permute(1, 2, 0).double())

"""Gaussian mixtures, whose denoiser, score and guided denoiser are known exactly.

Solvers, losses and distillation methods are tested against them: no training error, no network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewstep.diffusion.arrays import Array, FloatArray, Time, combine, fit, like, namespace
from fewstep.diffusion.prediction import Denoiser, Prediction
from fewstep.diffusion.schedule import Schedule
from fewstep.errors import UsageError

IntArray = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Isotropic Gaussian components, each with a label that serves as its condition.

    Args:
        means: float64 array (K, D).
        stds: float64 array (K,), 0 or more (0 is a point mass).
        weights: float64 array (K,), positive, summing to 1.
        labels: int array (K,).
    """

    means: FloatArray
    stds: FloatArray
    weights: FloatArray
    labels: np.ndarray[tuple[int], np.dtype[np.int64]]

    def only(self, label: int | None) -> GaussianMixture:
        """The components of one label, weights rescaled; itself for None.

        Raises:
            UsageError: no component has the label.
        """
        if label is None:
            return self
        kept = self.labels == label
        if not np.any(kept):
            raise UsageError(
                f"label {label} is not in this mixture: give one of {sorted(set(self.labels.tolist()))}"
            )
        w = self.weights[kept]
        return GaussianMixture(self.means[kept], self.stds[kept], w / w.sum(), self.labels[kept])

    def sample(
        self, rng: np.random.Generator, n: int
    ) -> tuple[FloatArray, np.ndarray[tuple[int], np.dtype[np.int64]]]:
        """Draw n points: (n, D) float64, and their labels (n,)."""
        k = rng.choice(len(self.weights), size=n, p=self.weights)
        points = self.means[k] + self.stds[k, None] * rng.standard_normal((n, self.means.shape[1]))
        return points, self.labels[k]

    def posterior_mean(
        self, x_t: Array, t: Time, schedule: Schedule, labels: IntArray | None = None
    ) -> Array:
        """E[x0 | x_t] for x_t of shape (B, D): the best denoised estimate there is.

        ``labels`` (B,) restricts each row to the components of its label; one that no component has restricts
        nothing.

        x_t given component k is N(alpha mu_k, alpha^2 std_k^2 + sigma^2); the estimate is the mean over k, by
        responsibility, of mu_k + alpha std_k^2 / (alpha^2 std_k^2 + sigma^2) (x_t - alpha mu_k).
        """
        xp = namespace(x_t)
        alpha, sigma = fit(schedule.alpha(t), x_t), fit(schedule.sigma(t), x_t)
        means, stds, logits = like(self.means, x_t), like(self.stds, x_t), like(np.log(self.weights), x_t)
        variance = (alpha * stds) ** 2 + sigma**2  # (K,) or (B, K)
        alpha_ = alpha if isinstance(alpha, float) else alpha[..., None]
        away = x_t[:, None, :] - alpha_ * means  # (B, K, D)
        logits = logits - 0.5 * xp.sum(away**2, axis=-1) / variance - 0.5 * x_t.shape[1] * xp.log(variance)
        if labels is not None:
            known = np.isin(labels, self.labels)
            shut_out = (np.asarray(labels)[:, None] != self.labels) & known[:, None]
            logits = logits + like(np.where(shut_out, -np.inf, 0.0), x_t)
        share = xp.exp(logits - xp.max(logits, axis=-1, keepdims=True))
        share = share / xp.sum(share, axis=-1, keepdims=True)
        each = means + (alpha * stds**2 / variance)[..., None] * away
        return xp.sum(share[..., None] * each, axis=1)

    def denoiser(self, schedule: Schedule, label: int | None = None) -> Denoiser:
        """The exact denoiser, of one label or of the whole mixture (the unconditional one)."""
        part = self.only(label)

        def denoise(x_t: Array, t: Time) -> Prediction:
            x0 = part.posterior_mean(x_t, t, schedule)
            eps = (x_t - fit(schedule.alpha(t), x_t) * x0) / fit(schedule.sigma(t), x_t)
            return Prediction(x0, eps)

        return denoise

    def denoiser_of(self, schedule: Schedule, labels: IntArray | None) -> Denoiser:
        """The exact denoiser of a batch whose rows have labels of their own; see `posterior_mean`."""

        def denoise(x_t: Array, t: Time) -> Prediction:
            x0 = self.posterior_mean(x_t, t, schedule, labels)
            eps = (x_t - fit(schedule.alpha(t), x_t) * x0) / fit(schedule.sigma(t), x_t)
            return Prediction(x0, eps)

        return denoise

    def guided(self, schedule: Schedule, label: int, scale: float) -> Denoiser:
        """The exact guided denoiser: u + scale (c - u) (Ho & Salimans 2022, 2207.12598, eq. 6)."""
        conditional, unconditional = self.denoiser(schedule, label), self.denoiser(schedule)

        def denoise(x_t: Array, t: Time) -> Prediction:
            c, u = conditional(x_t, t), unconditional(x_t, t)
            return Prediction(u.x0 + scale * (c.x0 - u.x0), u.eps + scale * (c.eps - u.eps))

        return denoise

    def score(self, x_t: Array, t: Time, schedule: Schedule, label: int | None = None) -> Array:
        """Gradient of log p(x_t), which is -eps / sigma (Song 2020, 2011.13456)."""
        return -self.denoiser(schedule, label)(x_t, t).eps / fit(schedule.sigma(t), x_t)

    def log_density(self, x_t: FloatArray, t: Time, schedule: Schedule) -> FloatArray:
        """Log p(x_t) of shape (B,), numpy only: what `score` is the gradient of."""
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        variance = (alpha * self.stds) ** 2 + sigma**2
        square = np.sum((x_t[:, None, :] - alpha * self.means) ** 2, axis=-1)
        dims = x_t.shape[1]
        logits = np.log(self.weights) - 0.5 * square / variance - 0.5 * dims * np.log(2 * math.pi * variance)
        top = logits.max(axis=1, keepdims=True)
        return np.asarray(top[:, 0] + np.log(np.exp(logits - top).sum(axis=1)), dtype=np.float64)


def gaussian_flow(mean: FloatArray, std: float, x_t: Array, t: Time, s: Time, schedule: Schedule) -> Array:
    """Exact endpoint at ``s`` of the probability-flow equation from ``x_t`` (B, D) for one Gaussian.

    The flow keeps the standardised position: (x - alpha mean) / sqrt(alpha^2 std^2 + sigma^2) is constant.
    """
    alpha_t, alpha_s, sigma_t, sigma_s = (
        schedule.alpha(t),
        schedule.alpha(s),
        schedule.sigma(t),
        schedule.sigma(s),
    )
    stretch = (((alpha_s * std) ** 2 + sigma_s**2) / ((alpha_t * std) ** 2 + sigma_t**2)) ** 0.5
    centre = like(mean, x_t)
    return combine(stretch, x_t - fit(alpha_t, x_t) * centre, alpha_s, centre + 0.0 * x_t)


def gaussian(mean: tuple[float, ...] = (0.5, -1.0), std: float = 0.4) -> GaussianMixture:
    """One Gaussian, labelled 0."""
    return GaussianMixture(np.array([mean]), np.array([std]), np.ones(1), np.zeros(1, dtype=np.int64))


def two_modes(distance: float = 2.0, std: float = 0.25, share: float = 0.5) -> GaussianMixture:
    """Two Gaussians on the first axis, labelled 0 (left) and 1 (right, with weight ``share``)."""
    means = np.array([[-distance / 2, 0.0], [distance / 2, 0.0]])
    return GaussianMixture(means, np.full(2, std), np.array([1.0 - share, share]), np.arange(2))


def ring(modes: int = 8, radius: float = 1.5, std: float = 0.1) -> GaussianMixture:
    """Gaussians on a circle, each with its own label."""
    angle = 2 * math.pi * np.arange(modes) / modes
    means = radius * np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return GaussianMixture(means, np.full(modes, std), np.full(modes, 1 / modes), np.arange(modes))


def grid(side: int = 5, spacing: float = 1.0, std: float = 0.1) -> GaussianMixture:
    """Side x side Gaussians on a square lattice around 0, labelled by row."""
    axis = spacing * (np.arange(side) - (side - 1) / 2)
    means = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    n = side * side
    return GaussianMixture(means, np.full(n, std), np.full(n, 1 / n), np.arange(n) // side)


def moons(points: int = 24, std: float = 0.08) -> GaussianMixture:
    """Two interleaved half circles, each a row of small Gaussians and a label."""
    angle = math.pi * (np.arange(points) + 0.5) / points
    upper = np.stack((np.cos(angle) - 0.5, np.sin(angle) - 0.25), axis=1)
    lower = np.stack((0.5 - np.cos(angle), 0.25 - np.sin(angle)), axis=1)
    n = 2 * points
    labels = np.repeat(np.arange(2), points)
    return GaussianMixture(1.2 * np.concatenate((upper, lower)), np.full(n, std), np.full(n, 1 / n), labels)


def checkerboard(side: int = 4, cell: float = 0.8) -> GaussianMixture:
    """The black cells of a board, each made of 4 x 4 Gaussians; labelled by row."""
    offsets = cell * ((np.arange(4) + 0.5) / 4 - 0.5)
    inside = np.stack(np.meshgrid(offsets, offsets, indexing="ij"), axis=-1).reshape(-1, 2)
    axis = cell * (np.arange(side) - (side - 1) / 2)
    cells = [(row, column) for row in range(side) for column in range(side) if (row + column) % 2 == 0]
    means = np.concatenate([np.array([axis[r], axis[c]]) + inside for r, c in cells])
    n = len(means)
    labels = np.repeat(np.array([row for row, _ in cells]), len(inside))
    return GaussianMixture(means, np.full(n, cell / 10), np.full(n, 1 / n), labels)


MIXTURES: dict[str, Callable[..., GaussianMixture]] = {
    "gaussian": gaussian,
    "two_modes": two_modes,
    "ring": ring,
    "grid": grid,
    "moons": moons,
    "checkerboard": checkerboard,
}

"""Prefix sums: for every bit, whether the sum of the bits up to it is odd."""

import numpy as np

from tfdeq.data.puzzles.numbers import raw_numbers, row_keys
from tfdeq.data.puzzles.puzzle import checked_grade, checked_size


def make(
    count: int, size: int, seed: int, grade: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Makes random bits and their prefix sums, tᵢ = x₀ + … + xᵢ mod 2.

    Args:
        count: N. size: number of bits, at least 1. seed: any 64-bit integer. grade: None.

    Returns:
        (bits, sums), both [N, size] int32 of 0 and 1.

    Raises:
        ValueError: for a size below 1, or a grade.

    Source: Schwarzschild et al., arXiv:2106.04537; Bansal et al., arXiv:2202.05826.
    """
    checked_grade("prefix_sums", grade, ())
    checked_size("prefix_sums", size, size >= 1, "1 or more")
    words = -(-size // 64)
    raw = raw_numbers("prefix_sums", seed, size).random_raw(count * words).reshape(count, words)
    bits = (raw[:, :, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    bits = bits.reshape(count, 64 * words)[:, :size].astype(np.int32)
    return bits, np.cumsum(bits, axis=1, dtype=np.int32) % 2


def check(inputs: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Returns [N] bool: a₀ = x₀, and aᵢ = aᵢ₋₁ + xᵢ mod 2 for i > 0."""
    inputs, answers = np.asarray(inputs), np.asarray(answers)
    before = np.concatenate([np.zeros_like(answers[:, :1]), answers[:, :-1]], axis=1)
    return (answers == (before ^ inputs)).all(axis=1)


def key(inputs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Returns [N] uint64, equal for equal bits."""
    del targets
    return row_keys(inputs)

"""Random numbers that are the same on every machine and for every version of NumPy."""

import hashlib
import zlib

import numpy as np


def raw_numbers(name: str, seed: int, *more: int) -> np.random.PCG64:
    """Returns a stream of raw 64-bit numbers that depends only on a name and integers.

    NumPy guarantees that the raw numbers of a bit generator stay the same in later versions, but not
    the distributions of `np.random.Generator`.

    Args:
        name: the purpose of the numbers.
        seed: any 64-bit integer.
        more: integers >= 0, such as a size.
    """
    entropy = [zlib.crc32(name.encode()), seed % 2**64, *more]
    return np.random.PCG64(np.random.SeedSequence(entropy))


def below(raw: np.ndarray, bound: int | np.ndarray) -> np.ndarray:
    """Returns int64 integers in [0, bound) from raw uint64 numbers; 1 <= bound < 2**31, broadcast.

    The relative difference between the probabilities of two numbers is below bound / 2**32.
    """
    high = (raw >> np.uint64(32)) * np.asarray(bound, np.uint64)
    return (high >> np.uint64(32)).astype(np.int64)


def uniform(raw: np.ndarray) -> np.ndarray:
    """Returns float64 numbers in [0, 1) from raw uint64 numbers."""
    return (raw >> np.uint64(11)) * 2.0**-53


def mixed(keys: np.ndarray) -> np.ndarray:
    """Returns uint64 hashes of uint64 keys, elementwise: the finaliser of SplitMix64.

    Sums of hashes do not depend on the order, so they can serve as keys of sets.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    keys = np.asarray(keys).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def row_keys(rows: np.ndarray) -> np.ndarray:
    """Returns [N] uint64 keys of [N, …] integers: equal for equal rows, and almost never for others."""
    rows = np.ascontiguousarray(rows, "<i4")
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in rows]
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)

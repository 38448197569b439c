"""IDX files: arrays of bytes with their sizes in front, as MNIST and Fashion-MNIST come."""

import gzip
import math
import os
import struct
import zlib

import numpy as np

_BYTES = 0x08  # the type of the entries: unsigned bytes


def read(path: str | os.PathLike, rank: int) -> np.ndarray:
    """Returns the array of an IDX file of unsigned bytes, gzipped or plain.

    Args:
        path: the file; gzipped if its first two bytes say so.
        rank: how many dimensions it must have.

    Raises:
        ValueError: the file is damaged, or holds something else; it names the file.
    """
    try:
        with open(path, "rb") as file:
            content = file.read()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(_damaged(path, f"it cannot be decompressed ({error})")) from error
    head = 4 + 4 * rank
    if len(content) < head or content[:4] != bytes([0, 0, _BYTES, rank]):
        raise ValueError(
            _damaged(path, f"it does not begin as an IDX file of bytes in {rank} dimensions does")
        )
    shape = struct.unpack(f">{rank}I", content[4:head])
    if len(content) - head != math.prod(shape):
        raise ValueError(
            _damaged(
                path, f"it announces the shape {shape} and holds {len(content) - head:,} entries"
            )
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _damaged(path: str | os.PathLike, reason: str) -> str:
    return f"{os.fspath(path)!r} is damaged: {reason}. Fetch the file again."

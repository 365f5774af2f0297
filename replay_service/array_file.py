"""Tensors of any device in npy files, chunk by chunk: no second copy of the data in memory."""

from __future__ import annotations

from collections.abc import Iterator
from tokenize import TokenError
from typing import IO, TypeVar
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Number = TypeVar("Number", bound=np.generic)

_CHUNK_BYTES = 16 << 20


def write_array(file: IO[bytes], tensor: Tensor) -> None:
    """The bytes of `np.save`, chunk by chunk, wherever the tensor lies."""
    dtype = tensor[:0].cpu().numpy().dtype
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": tuple(tensor.shape),
    }
    np.lib.format.write_array_header_1_0(file, header)
    for rows in _chunks(tensor):
        file.write(tensor[rows].cpu().contiguous().numpy().reshape(-1).view(np.uint8).data)


def check_array(file: IO[bytes], name: str, out: Tensor) -> None:
    """ValueError unless the file holds what belongs into `out`."""
    shape, dtype = _read_header(file)
    expected = out[:0].cpu().numpy().dtype
    if shape != tuple(out.shape) or dtype != expected:
        raise ValueError(f"{name} is {dtype} {shape}, expected {expected} {tuple(out.shape)}")


def read_array(file: IO[bytes], name: str, out: Tensor) -> None:
    """Fill `out` from a file that `check_array` found to fit; EOFError if it ends too early."""
    _, dtype = _read_header(file)
    for rows in _chunks(out):
        part = np.empty(tuple(out[rows].shape), dtype=dtype)
        wanted = part.reshape(-1).view(np.uint8).data
        n_read = 0
        while n_read < len(wanted):
            content = file.read(len(wanted) - n_read)
            if not content:
                raise EOFError(f"{name} ends within rows {rows.start} .. {rows.stop - 1}")
            wanted[n_read : n_read + len(content)] = content
            n_read += len(content)
        out[rows].copy_(torch.from_numpy(part))
    if file.read(1):  # in an archive this also compares the checksum
        raise ValueError(f"{name} goes on after {len(out)} rows")


def read_vector(archive: ZipFile, name: str, dtype: type[Number]) -> NDArray[Number]:
    """An array [n] of its own length in an archive; ValueError if it is anything else."""
    with archive.open(f"{name}.npy") as member:
        shape, found = _read_header(member)
        is_short = len(shape) == 1 and 0 <= shape[0] <= archive.getinfo(f"{name}.npy").file_size
        if found != dtype or not is_short:
            raise ValueError(f"{name} is {found} {shape}, expected {np.dtype(dtype)} [n]")
        content = np.frombuffer(member.read(), dtype)
    if content.shape != shape:
        raise ValueError(f"{name} has {len(content)} entries, its header says {shape[0]}")
    return content


def _chunks(tensor: Tensor) -> Iterator[slice]:
    """Slices of rows of some 16 MB."""
    n_rows = len(tensor)
    bytes_per_row = max(tensor.element_size() * tensor.numel() // max(n_rows, 1), 1)
    step = max(_CHUNK_BYTES // bytes_per_row, 1)
    for start in range(0, n_rows, step):
        yield slice(start, min(start + step, n_rows))


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(member)
    if version != (1, 0):
        raise ValueError(f"array format {version} is not supported, expected (1, 0)")
    try:
        shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(member)
    # What Python's parser and numpy's reading of types raise for text that is no header.
    except (SyntaxError, TypeError, RecursionError, MemoryError, TokenError) as error:
        raise ValueError("the header of an array can't be read") from error
    if is_fortran:
        raise ValueError("column-major arrays are not supported")
    return shape, dtype

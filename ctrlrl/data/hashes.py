"""A 64-bit hash of every row: equal rows in a million are found in a second, and no copy of the table is sorted."""

from __future__ import annotations

import numpy as np

from ctrlrl.data.episodes import Array

_BLOCK = 2**16  # rows hashed at a time: bounds the memory for images


def row_hashes(*columns: Array) -> Array:
    """[N] uint64, equal where all columns [N, ...] hold the same bytes; different rows collide once in 2**64 pairs."""
    found = np.zeros(len(columns[0]), dtype=np.uint64)
    for begin in range(0, len(found), _BLOCK):
        state = found[begin : begin + _BLOCK]
        for column in columns:
            for word in _words(column[begin : begin + _BLOCK]):
                _stir(state, word)
    return found


def _words(rows: Array) -> Array:
    """The bytes of rows [n, ...], filled up to whole 64-bit words, as [words, n]."""
    data = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    padded = np.zeros((len(data), -(-data.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : data.shape[1]] = data
    return np.ascontiguousarray(padded.view(np.uint64).T)


def _stir(state: Array, word: Array) -> None:
    """One round of splitmix64 in place: not linear, so that mirrored rows (only signs differ) do not meet."""
    state += word + np.uint64(0x9E3779B97F4A7C15)
    state ^= state >> np.uint64(30)
    state *= np.uint64(0xBF58476D1CE4E5B9)
    state ^= state >> np.uint64(27)
    state *= np.uint64(0x94D049BB133111EB)
    state ^= state >> np.uint64(31)


def duplicates(hashes: Array) -> Array:
    """Numbers of the rows that repeat an earlier one, ascending."""
    order = np.argsort(hashes, kind="stable")
    again = hashes[order[1:]] == hashes[order[:-1]]
    return np.sort(order[1:][again])

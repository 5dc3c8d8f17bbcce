"""Undoes the quantizers of payloads; written from FORMAT.md alone."""

import math

import numpy as np

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022833234]
NF4 += [-0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224]
NF4 += [0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def widened(words):
    """Return bfloat16 words as float32."""
    return (words.astype("<u4") << 16).view("<f4")


def narrowed(values):
    """Return float32 values as bfloat16 words, ties to even."""
    bits = values.view("<u4").astype("<u8")
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype("<u2")


def float8_e4m3fn(codes):
    """Return float32 values: the bits of a float16 with another bias, 15 instead of 7."""
    bits = codes.astype("<u2")
    values = (bits << 8 & 0x8000 | (bits & 127) << 7).view("<f2").astype("<f4") * 256
    return np.where(bits & 127 == 127, np.float32(np.nan), values)


LEVELS = {  # by quantizer and mode, of code words
    (1, 1): lambda codes: codes.view("<f2"),
    (2, 1): widened,
    (3, 0): lambda codes: codes,
    (3, 1): lambda codes: codes.view("i1"),
    (4, 0): lambda codes: codes,
    (4, 1): lambda codes: codes.astype("i2") - 8,
    (5, 1): lambda codes: np.array(NF4, "<f4")[codes & 15],
    (6, 1): float8_e4m3fn,
    (7, 1): lambda codes: (codes.astype("<u2") << 8).view("<f2"),
    (8, 1): lambda codes: codes.view("i1"),
}


def array(group, dtype, count):
    """Return the array that the next frames hold, 256 KiB each."""
    size, most = count * np.dtype(dtype).itemsize, 1 << 18
    return np.frombuffer(b"".join(group(min(most, size - at)) for at in range(0, size, most)), dtype)


def layout(granularity, number, shape):
    """Return how many neighbours share a parameter, and how many parameters a record of this shape has."""
    if granularity == 3:
        granularity, number = (1 if len(shape) > 1 and math.prod(shape[1:]) >= 64 else 0), 0
    if granularity == 1:
        return math.prod(shape[number % len(shape) + 1 :]), shape[number]
    inner = number if granularity == 2 else math.prod(shape)
    return inner, -(-math.prod(shape) // inner)


def scaled(spec, parameters, values, group):
    """Return level × scale + minimum."""
    record = spec.shape[1:] if spec.page else spec.shape
    inner, count = layout(parameters[1], int.from_bytes(parameters[2:6], "little", signed=True), record)
    values = values.reshape(-1, math.prod(record))
    at = np.arange(values.shape[1]) // inner % count
    for combine in (np.multiply, np.add)[: 2 - parameters[0]]:
        narrow = parameters[6:7] == b"\1"
        stored = array(group, "<u2" if narrow else "<f4", len(values) * count).reshape(-1, count)
        values = combine(values, (widened(stored) if narrow else stored)[:, at], dtype=values.dtype)
    return values.reshape(-1)


def dequantized(spec, codes, group):
    """Return all elements, those stored exactly among them."""
    quantizer, parameters = spec.stages[0]
    with np.errstate(all="ignore"):  # codes in the places of exceptions mean nothing
        values = LEVELS[quantizer, parameters[0] if parameters else 1](codes).astype(
            "<f8" if spec.dtype == 2 else "<f4"
        )
        values = scaled(spec, parameters, values, group) if parameters else values
        values = narrowed(values) if spec.dtype == 4 else values.astype(spec.numpy)
    if spec.exceptions:
        places = array(group, "<u4" if len(values) <= 1 << 32 else "<u8", spec.exceptions)
        values[places] = array(group, spec.numpy, spec.exceptions)
    return values

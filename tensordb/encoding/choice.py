"""What to write a tensor with: filter and codec, chosen from the configuration, the dtype and a sample of the bytes."""

from __future__ import annotations

from tensordb.encoding.candidates import every, likely, named, number_of
from tensordb.encoding.codecs import codec_named
from tensordb.encoding.filters import BitPack, Constant
from tensordb.encoding.plans import HUFFMAN, MINIMUM_SAVING, RAW_PLAN, Codes, Plan, always
from tensordb.encoding.presets import CompressionConfig
from tensordb.encoding.sampling import pieces, shares_of
from tensordb.tensors import dtype_from_name

_WORTH_COMPRESSING = 128
_WORTH_SAMPLING = 16 << 10
_ROUNDS = (
    (32, 32 << 10, 128 << 10, 32 << 10, 1.05),
    (16, 128 << 10, 512 << 10, 64 << 10, 1.02),
    (12, 0, 1 << 20, 1 << 30, 1.0),
)
"""Of each round: the share of the tensor that is sampled, at least and at most so many bytes, in pieces of so many; and
how near to the best a plan must be to get into the next. Repetitions that are far apart show only in whole chunks."""
_ALIKE, _SLACK = 1.0025, 0.005
_FINALISTS = 3


def plans_for(config: CompressionConfig, codes: Codes, chunk_bytes: int) -> list[Plan]:
    """Return the plans to try; the smallest result is to be kept.

    Args:
        config: What the user asked for.
        codes: What is to be written.
        chunk_bytes: Of a chunk.
    """
    if not codes.data.nbytes:
        return [RAW_PLAN]
    if config.compression == "none":
        return [_raw(codes)]
    if config.compression in ("auto", "best"):
        if codes.data.nbytes < _WORTH_COMPRESSING:
            return [_raw(codes)]
        itemsize = dtype_from_name(codes.dtype).itemsize
        if Constant.fits(codes.data, itemsize):
            return [always(Constant(itemsize), HUFFMAN)]
        return [_auto(codes, chunk_bytes)] if config.compression == "auto" else _best(codes, chunk_bytes)
    return [_asked_for(config, codes)]


def _raw(codes: Codes) -> Plan:
    """Return the codes as they are, but for those that need no whole byte."""
    return RAW_PLAN if codes.bits >= 8 else Plan(BitPack(codes.bits), codec_named("none"), (0.0,))


def _auto(codes: Codes, chunk_bytes: int) -> Plan:
    plans = likely(codes, chunk_bytes)
    if codes.data.nbytes < _WORTH_SAMPLING or len(plans) == 1:
        return plans[0]
    for part, least, most, size, near in _ROUNDS:
        total = min(max(codes.data.nbytes // part, least), most)
        shares = shares_of(plans, pieces(codes, chunk_bytes, total, size), chunk_bytes)
        best = min(shares)
        limit = best if near == 1 else best * near + _SLACK
        rivals = [(plan, share) for plan, share in zip(plans, shares, strict=True) if share <= limit]
        plans = [plan for plan, _ in rivals]
        if max(share for _, share in rivals) <= best * _ALIKE:
            break
    return plans[0] if best < 1 - MINIMUM_SAVING else _raw(codes)


def _best(codes: Codes, chunk_bytes: int) -> list[Plan]:
    """Return the few of all candidates that may turn out smallest."""
    plans = every(codes)
    if codes.data.nbytes >= _WORTH_SAMPLING:
        part, least, _, size, near = _ROUNDS[1]
        total = max(codes.data.nbytes // part, least)
        shares = shares_of(plans, pieces(codes, chunk_bytes, total, size), chunk_bytes)
        order = sorted(range(len(plans)), key=shares.__getitem__)[:_FINALISTS]
        plans = [plans[index] for index in order if shares[index] <= min(shares) * near]
    # What auto would take is one of them, so that nothing is ever larger than with it.
    return [_raw(codes), _auto(codes, chunk_bytes), *plans]


def _asked_for(config: CompressionConfig, codes: Codes) -> Plan:
    filter_ = named(codes, config.filter)
    if config.compression == "pcodec" and filter_.id == 0:
        return always(filter_, codec_named("pcodec", **{"number": number_of(codes.dtype)} | config.codec_parameters))
    return always(filter_, config.codec())

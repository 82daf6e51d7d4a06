"""Dense packing of integer codes of 2 to 8 bits into bytes.

Eight codes of b bits fill b bytes exactly, whatever b is, so three-bit codes waste nothing. Within such a run code i
takes the bits i b .. i b + b - 1 of a little-endian integer. Codes are stored unsigned: signed codes are shifted by
their lowest level, Qn.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .levels import check_bits

RUN = 8  # codes that fill whole bytes at any width


def packed_size(numel: int, bits: int) -> int:
    """Bytes that `numel` codes of `bits` bits take."""
    return math.ceil(numel * bits / 8)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes.

    Args:
        codes: integers in 0..2^bits-1, any shape and integer type.
        bits: 2 to 8.

    Returns:
        uint8 tensor, (packed_size(numel, bits),).

    Raises:
        ValueError: if `bits` is not 2 to 8 or a code does not fit in it.
    """
    check_bits(bits)
    flat = codes.reshape(-1).long()
    if flat.numel() and (flat.min() < 0 or flat.max() >= 1 << bits):
        raise ValueError(f"codes span {flat.min()}..{flat.max()}, but {bits}-bit codes are 0..{(1 << bits) - 1}.")
    padded = torch.nn.functional.pad(flat, (0, -flat.numel() % RUN)).view(-1, RUN)
    runs = torch.zeros_like(padded[:, 0])
    for i in range(RUN):
        runs |= padded[:, i] << i * bits
    packed = torch.stack([runs >> 8 * byte & 0xFF for byte in range(bits)], 1).to(torch.uint8)
    return packed.view(-1)[: packed_size(flat.numel(), bits)].contiguous()


def unpack_codes(packed: Tensor, bits: int, numel: int) -> Tensor:
    """Undo `pack_codes`.

    Args:
        packed: uint8 tensor, (packed_size(numel, bits),).
        bits: 2 to 8.
        numel: number of codes.

    Returns:
        uint8 tensor of codes, (numel,).

    Raises:
        ValueError: if `bits` is not 2 to 8, or `packed` is not a byte tensor of the size that `numel` codes take.
    """
    check_bits(bits)
    if packed.dtype != torch.uint8 or packed.shape != (packed_size(numel, bits),):
        raise ValueError(
            f"packed codes have type {packed.dtype} and shape {tuple(packed.shape)}, but {numel} codes of {bits} bits"
            f" are torch.uint8 of shape ({packed_size(numel, bits)},)."
        )
    if bits == 8:
        return packed.clone()
    if 8 % bits == 0:  # whole codes in every byte: no need of wider integers
        shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
        return (packed[:, None] >> shifts & (1 << bits) - 1).view(-1)[:numel]
    columns = torch.nn.functional.pad(packed, (0, -packed.numel() % bits)).view(-1, bits).long()
    runs = torch.zeros_like(columns[:, 0])
    for byte in range(bits):
        runs |= columns[:, byte] << 8 * byte
    shifts = torch.arange(0, RUN * bits, bits, device=packed.device)
    return (runs[:, None] >> shifts & (1 << bits) - 1).to(torch.uint8).view(-1)[:numel]

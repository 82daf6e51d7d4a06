"""The integer levels of a b-bit quantizer."""

from __future__ import annotations

MIN_BITS = 2
MAX_BITS = 8


def check_bits(bits: object, name: str = "bits", optional: bool = False) -> None:
    """Refuse anything but an integer from 2 to 8 (or None where `optional`).

    Raises:
        ValueError: naming `name`, the value and what is accepted.
    """
    if optional and bits is None:
        return
    # bool is a subclass of int: True would silently mean one bit.
    if isinstance(bits, bool) or not isinstance(bits, int) or not MIN_BITS <= bits <= MAX_BITS:
        accepted = f"an integer from {MIN_BITS} to {MAX_BITS}" + (", or None (not quantized)" if optional else "")
        raise ValueError(f"{name}={bits!r} is not a bit-width: expected {accepted}.")


def integer_range(bits: int, signed: bool = True) -> tuple[int, int]:
    """Lowest and highest code (Qn, Qp): -2^(b-1), 2^(b-1)-1 if `signed`, else 0, 2^b-1 (LSQ, section 2).

    Raises:
        ValueError: if `bits` is not an integer from 2 to 8.
    """
    check_bits(bits)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

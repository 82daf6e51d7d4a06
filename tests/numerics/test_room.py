"""Temporary tensors with room behind them are tensors like others, in a larger block."""

import torch

from hf_vaq.numerics.room import FROM, ROOM, empty_with_room


def test_a_large_tensor_has_room_behind_it_and_is_no_view():
    x = empty_with_room((4, FROM // 8, 2), torch.float32)
    assert x.shape == (4, FROM // 8, 2) and x.is_contiguous() and not x._is_view()
    assert x.untyped_storage().nbytes() == 4 * x.numel() + ROOM


def test_a_small_tensor_has_none():
    x = empty_with_room((3, 5), torch.bfloat16)
    assert x.shape == (3, 5) and x.dtype is torch.bfloat16 and x.untyped_storage().nbytes() == 30

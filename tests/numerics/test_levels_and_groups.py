import pytest
import torch

from hf_vaq.numerics.groups import ScaleGroups
from hf_vaq.numerics.levels import check_bits, integer_range


def test_integer_ranges_are_those_of_twos_complement_and_of_unsigned_integers():
    assert [integer_range(bits) for bits in (2, 3, 4, 8)] == [(-2, 1), (-4, 3), (-8, 7), (-128, 127)]
    assert [integer_range(bits, signed=False) for bits in (2, 3, 4, 8)] == [(0, 3), (0, 7), (0, 15), (0, 255)]


@pytest.mark.parametrize("bits", [0, 1, 9, -2, "4", 4.0, True, None])
def test_a_value_that_is_no_bit_width_is_refused_by_name(bits):
    with pytest.raises(ValueError, match=r"weight_bits=.*expected an integer from 2 to 8"):
        check_bits(bits, "weight_bits")


def test_groups_collect_and_expand_agree_along_any_dimension():
    x = torch.arange(24.0).view(2, 4, 3)
    for groups, expected in (
        (ScaleGroups(), [x.flatten()]),
        (ScaleGroups(2, 1), [x[:, :2].movedim(1, 0).flatten(), x[:, 2:].movedim(1, 0).flatten()]),
        (ScaleGroups(3, -1), [x[..., i].flatten() for i in range(3)]),
    ):
        rows = groups.collect(x)
        assert all(torch.equal(row, wanted) for row, wanted in zip(rows, expected, strict=True))
        marked = torch.zeros_like(x) + groups.expand(torch.arange(1.0, groups.count + 1), x.shape)
        assert torch.equal(groups.collect(marked), torch.arange(1.0, groups.count + 1)[:, None].expand_as(rows))


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"q_proj: 3 groups do not divide its size 4 in dimension 0"):
        ScaleGroups(3, 0).check((4, 6), "q_proj")

import pytest
import torch

from hf_vaq.numerics.packing import pack_codes, packed_size, unpack_codes


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 1001])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_unpacking_undoes_packing_and_no_bit_is_wasted(bits, numel):
    codes = torch.randint(0, 2**bits, (numel,))
    packed = pack_codes(codes, bits)
    assert packed.dtype is torch.uint8
    assert packed.numel() == packed_size(numel, bits) == -(-numel * bits // 8)
    assert torch.equal(unpack_codes(packed, bits, numel).long(), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_layout_is_a_little_endian_stream_of_bits(bits):
    codes = torch.randint(0, 2**bits, (24,)).tolist()
    stream = sum(code << i * bits for i, code in enumerate(codes))
    assert bytes(pack_codes(torch.tensor(codes), bits).tolist()) == stream.to_bytes(3 * bits, "little")


def test_codes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.4, but 2-bit codes are 0\.\.3"):
        pack_codes(torch.tensor([0, 4]), 2)
    with pytest.raises(ValueError, match=r"-1\.\.1"):
        pack_codes(torch.tensor([-1, 1]), 2)


def test_packed_codes_of_a_wrong_size_or_type_are_refused():
    packed = pack_codes(torch.zeros(16, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"16 codes of 3 bits are torch.uint8 of shape \(6,\)"):
        unpack_codes(packed[:-1], 3, 16)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        unpack_codes(packed.long(), 3, 16)

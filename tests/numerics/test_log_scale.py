import pytest
import torch

from hf_vaq.numerics.log_scale import log_from_scale, scale_from_log


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 80.0, -80.0, 1e30, -1e30, float("inf"), float("-inf")])
def test_no_parameter_makes_a_scale_that_is_zero_negative_or_infinite(value):
    scale = scale_from_log(torch.tensor([value]))
    assert torch.isfinite(scale).all() and (scale > 0).all()


def test_scales_survive_the_way_to_the_parameter_and_back():
    scale = torch.logspace(-5, 4, 50)
    torch.testing.assert_close(scale_from_log(log_from_scale(scale)), scale, rtol=1e-5, atol=0)


def test_a_small_step_of_the_parameter_is_a_relative_change_of_the_scale():
    parameter = torch.tensor([-3.0], requires_grad=True)
    scale = scale_from_log(parameter)
    scale.backward()
    assert parameter.grad.item() == pytest.approx(scale.item(), rel=0.05)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_what_is_no_scale_is_refused(bad):
    with pytest.raises(ValueError, match="positive and finite"):
        log_from_scale(torch.tensor([1.0, bad]))

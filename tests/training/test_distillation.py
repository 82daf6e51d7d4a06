"""Soft cross-entropy against its closed form."""

import pytest
import torch

from hf_vaq.training import soft_cross_entropy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_value_and_gradient_equal_the_closed_form(temperature):
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(5, 7, generator=generator, dtype=torch.float64)
    p = torch.exp(teacher / temperature) / torch.exp(teacher / temperature).sum(1, keepdim=True)
    q = torch.exp(student / temperature) / torch.exp(student / temperature).sum(1, keepdim=True)
    value = soft_cross_entropy(student, teacher, temperature)
    value.backward()
    torch.testing.assert_close(value, -(temperature**2) * (p * q.log()).sum(1).mean())
    torch.testing.assert_close(student.grad, temperature * (q - p).detach() / 5)


def test_equal_logits_have_no_gradient_and_the_value_of_the_entropy():
    logits = torch.tensor([[0.0, 0.0]], requires_grad=True)
    value = soft_cross_entropy(logits, logits)
    value.backward()
    assert value.item() == pytest.approx(0.693147, abs=1e-6)
    assert logits.grad.tolist() == [[0.0, 0.0]]


def test_the_teacher_gets_no_gradient():
    teacher = torch.randn(2, 3, requires_grad=True)
    assert not soft_cross_entropy(torch.randn(2, 3), teacher).requires_grad


def test_bfloat16_logits_are_reduced_in_float32():
    student = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).bfloat16()
    value = soft_cross_entropy(student, student)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, soft_cross_entropy(student.float(), student.float()), rtol=0, atol=0)


def test_other_numbers_of_classes_are_refused():
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected the student's \(2, 3\)"):
        soft_cross_entropy(torch.zeros(2, 3), torch.zeros(2, 4))

import torch

from hf_vaq.nn import ActivationQuantizer
from hf_vaq.nn.attention import quantized_attention
from hf_vaq.numerics.groups import ScaleGroups


def qkv():
    return torch.randn(3, 2, 4, 5, 6).unbind(0)


def test_without_quantizers_it_is_attention():
    query, key, value = qkv()
    mask = torch.randn(1, 4, 5, 5)
    output, probabilities = quantized_attention(torch.nn.Module().eval(), query, key, value, mask, scaling=0.3)
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=0.3)
    torch.testing.assert_close(output, wanted.transpose(1, 2))
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, 4, 5))


def test_the_scaling_defaults_to_that_of_the_head_dimension():
    query, key, value = qkv()
    module = torch.nn.Module().eval()
    explicit, _ = quantized_attention(module, query, key, value, None, scaling=6**-0.5)
    assert torch.equal(quantized_attention(module, query, key, value, None)[0], explicit)


def test_queries_keys_values_and_probabilities_are_quantized_each_by_its_own_quantizer():
    query, key, value = qkv()
    module = torch.nn.Module()
    module.attention_quantizers = torch.nn.ModuleDict(
        {
            name: ActivationQuantizer(3, ScaleGroups(4, 1), signed=name != "probabilities")
            for name in ("query", "key", "value", "probabilities")
        }
    )
    output, probabilities = quantized_attention(module.train(), query, key, value, None)
    quantizers = module.attention_quantizers
    scores = quantizers["query"](query) @ quantizers["key"](key).transpose(2, 3) * 6**-0.5
    wanted = quantizers["probabilities"](scores.softmax(-1))
    assert torch.equal(probabilities, wanted)
    assert torch.equal(output, (wanted @ quantizers["value"](value)).transpose(1, 2))
    assert all(len(head.unique()) <= 8 for head in probabilities.unbind(1))

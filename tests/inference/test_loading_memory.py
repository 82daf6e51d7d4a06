"""What a packed model takes on disk and in memory."""

import subprocess
import sys

import pytest
import torch
from transformers import DeiTConfig, DeiTForImageClassification

import hf_vaq

DEIT_TINY = {"hidden_size": 192, "num_attention_heads": 3, "intermediate_size": 768, "num_labels": 1000}


@pytest.fixture(scope="module")
def deit_tiny():
    torch.manual_seed(0)
    return DeiTForImageClassification(DeiTConfig(**DEIT_TINY)).eval()


@pytest.mark.parametrize("bits, ratio", [(2, 11), (4, 6.5)])
def test_deit_tiny_is_a_fraction_of_its_size_on_disk(bits, ratio, deit_tiny, tmp_path):
    config = hf_vaq.QuantConfig(weight_bits=bits, activation_bits=bits)
    model = hf_vaq.quantize(DeiTForImageClassification(deit_tiny.config).eval(), config)
    hf_vaq.calibrate(model, [torch.randn(1, 3, 224, 224)])
    hf_vaq.pack(model).save_pretrained(tmp_path)
    floats = sum(4 * parameter.numel() for parameter in deit_tiny.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size <= floats / ratio


MEASURE = """
import resource, sys
import hf_vaq
from transformers import AutoModelForImageClassification as M
M.from_pretrained(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = M.from_pretrained(sys.argv[2])
assert model.execution
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in kilobytes on Linux only")
def test_loading_takes_at_most_one_and_a_half_times_the_packed_file(tmp_path):
    """Against a tiny model loaded before it, which stands for the runtime; a model of 21 MB packed, 300 MB float."""
    shapes = {"tiny": {"hidden_size": 32}, "large": {"hidden_size": 1024, "num_hidden_layers": 6}}
    for name, shape in shapes.items():
        sizes = {"num_attention_heads": 2, "image_size": 32, "patch_size": 16, "num_labels": 2, "num_hidden_layers": 1}
        config = DeiTConfig(**sizes | shape, intermediate_size=4 * shape["hidden_size"])
        model = hf_vaq.quantize(
            DeiTForImageClassification(config).eval(), hf_vaq.QuantConfig(weight_bits=2, activation_bits=2)
        )
        hf_vaq.calibrate(model, [torch.randn(1, 3, 32, 32)])
        hf_vaq.pack(model).save_pretrained(tmp_path / name)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 15e6
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "tiny"), str(tmp_path / "large")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 1.5 * size

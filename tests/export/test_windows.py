"""Swin's windows as gathers: the same values as transformers' own layers, with and without shift and padding."""

import copy

import pytest
import torch
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinLayer, SwinPatchMerging

from hf_vaq.export.attention import EXPORTED_ATTENTION
from hf_vaq.export.windows import ExportedPatchMerging, ExportedSwinLayer


@pytest.mark.parametrize(("height", "width"), [(8, 12), (6, 9)], ids=["whole_windows", "padded"])
@pytest.mark.parametrize("shift", [0, 2])
@torch.no_grad()
def test_a_layer_with_gathered_windows_gives_what_transformers_gives(height, width, shift):
    torch.manual_seed(0)
    config = SwinConfig(window_size=4, attn_implementation="eager")
    layer = SwinLayer(config, dim=8, input_resolution=(height, width), num_heads=2, shift_size=shift).eval()
    layer.attention.relative_position_bias.relative_position_bias_table.normal_()
    hidden_states = torch.randn(3, height * width, 8)
    expected = layer(hidden_states, (height, width))[0]
    gathered = copy.deepcopy(layer)
    gathered.attention.config._attn_implementation = EXPORTED_ATTENTION
    found = ExportedSwinLayer(gathered)(hidden_states, (height, width))[0]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(4, 6), (5, 3)], ids=["even", "odd"])
@torch.no_grad()
def test_gathered_neighbours_are_merged_as_transformers_does(height, width):
    torch.manual_seed(0)
    merging = SwinPatchMerging(8).eval()
    features = torch.randn(2, height * width, 8)
    torch.testing.assert_close(
        ExportedPatchMerging(merging)(features, (height, width)), merging(features, (height, width))
    )

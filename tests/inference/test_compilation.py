"""torch.compile of packed models: without graph breaks, with the same answers."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import build, images
from inference_helpers import logits, packed, trained

from hf_vaq.inference import compile_model, gemm, set_execution
from hf_vaq.inference.backends import has_integer_instructions
from hf_vaq.inference.native import kernels
from hf_vaq.inference.whole_layers import runs_whole

needs_integers = pytest.mark.skipif(not has_integer_instructions(), reason="needs a CPU with VNNI or AMX")


@pytest.mark.slow
@needs_integers
@pytest.mark.parametrize("family", ["deit", "swin"])
def test_a_compiled_model_has_no_graph_breaks_and_gives_the_answers_of_the_model(family):
    model = packed(family)
    compiled = compile_model(model)
    for count in (1, 16):
        found, expected = compiled(pixel_values=images(count)).logits, logits(model, images(count))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    # The compiler rounds sums of a LayerNorm otherwise: a number on the border of two codes may get the other one.
    assert ((found - expected).abs().amax(1) < 1e-6).float().mean() >= 0.75
    assert compiled.execution == model.execution and compiled.config is model.config
    # The settings of the compiler are its own again.
    assert not torch._inductor.config.freezing


@pytest.mark.slow
@needs_integers
@pytest.mark.parametrize("backend", ["onednn", "int_mm"])
def test_plain_torch_compile_works_on_a_model_that_was_used_before(backend):
    model = set_execution(packed("deit"), "integer", backend=backend)
    expected = logits(model)
    with torch.inference_mode():
        compiled = torch.compile(model, fullgraph=True)(pixel_values=images()).logits
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@torch._dynamo.config.patch(recompile_limit=1)
def test_more_shapes_than_the_limit_of_the_compiler_are_compiled():
    model = packed("deit")
    compiled = compile_model(model)
    for count in (1, 2, 3):
        torch.testing.assert_close(
            compiled(pixel_values=images(count)).logits, logits(model, images(count)), rtol=0, atol=1e-3
        )


@pytest.mark.slow
def test_threads_that_call_a_compiled_model_leave_no_setting_behind():
    compiled = compile_model(packed("deit"))
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda i: compiled(pixel_values=images(1 + i % 2)).logits, range(40)))
    assert all(torch.equal(answer, found[i % 2]) for i, answer in enumerate(found))
    assert not torch._inductor.config.freezing and not gemm.frozen


@pytest.mark.parametrize("form", ["training", "auto", "simulation"])
@pytest.mark.parametrize("family", ["deit", "swin", "beit", "dinov2"])
def test_an_exported_program_takes_batches_of_every_size(family, form):
    model = trained(family) if form == "training" else set_execution(packed(family), form)
    batch = {"pixel_values": {0: torch.export.Dim.DYNAMIC}}
    with torch.no_grad():
        program = torch.export.export(model, (), {"pixel_values": images(2)}, dynamic_shapes=batch).module()
        found = program(pixel_values=images(70)).logits
    if form == "auto":
        set_execution(model, "simulation")  # prepared weights belong to a process, so a program has none
    torch.testing.assert_close(found, logits(model, images(70)), rtol=0, atol=1e-5)


@needs_integers
@pytest.mark.parametrize("family", ["deit", "swin", "beit"])
def test_the_whole_forward_pass_is_one_graph(family):
    graphs = []

    def keep(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    model = packed(family)
    expected = logits(model)
    with torch.inference_mode():
        compiled = torch.compile(copy.copy(model), fullgraph=True, backend=keep)(pixel_values=images()).logits
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-5)
    # A hook of the model is compiled by itself: it marks the answers to images with NaN.
    assert sum("hf_vaq" in graph.code for graph in graphs) == 1
    if kernels() is not None:
        layers = sum(map(runs_whole, model.modules()))
        assert sum("hf_vaq.layer" in str(node.target) for node in graphs[0].graph.nodes) == layers > 0


def test_only_packed_models_are_compiled_here():
    for model in (build(), trained(calibrated=False)):
        with pytest.raises(ValueError, match="is not packed"):
            compile_model(model)

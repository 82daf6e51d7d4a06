"""ONNX Runtime: float32, and static int8 as QDQ."""

from __future__ import annotations

import torch

from .contestant import Contestant, Logits, Task


def float32(task: Task) -> Contestant:
    return session(exported(task), task)


def static_int8(task: Task) -> Contestant:
    import onnxruntime.quantization as quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{"pixel_values": batch.numpy()} for batch in task.calibration()])

        def get_next(self):
            return next(self.batches, None)

    path = task.folder / "ort_int8.onnx"
    if not path.exists():
        prepared, partial = task.folder / "ort_prepared.onnx", task.folder / "ort_int8.partial.onnx"
        quant_pre_process(exported(task), prepared, skip_symbolic_shape=True)
        quantization.quantize_static(
            prepared,
            partial,
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            # what ONNX Runtime advises for x86 with VNNI
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        partial.rename(path)
    return session(path, task)


BUILDERS = {"ONNX Runtime float32": float32, "ONNX Runtime static int8 (QDQ)": static_int8}


def exported(task: Task):
    """The float32 model as ONNX, with a free batch size; returns its path."""
    path = task.folder / "float32.onnx"
    if not path.exists():
        partial = path.with_suffix(".partial.onnx")
        with torch.no_grad():
            torch.onnx.export(
                Logits(task.copy()),
                (task.pixels(2),),
                partial,
                input_names=["pixel_values"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        partial.rename(path)
    return path


def session(path, task: Task) -> Contestant:
    """A session of ONNX Runtime on a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = task.threads
    # Its threads would otherwise go on spinning after a call and slow down whoever is measured next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    inference = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {inference.get_inputs()[0].name: task.pixels().numpy()}
    return Contestant(lambda: inference.run(None, inputs)[0], path.stat().st_size)

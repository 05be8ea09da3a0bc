"""A network in OpenVINO, converted in memory: no file, and nothing that would execute code when it is read."""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor

from atonce.core.errors import InputError, MissingExtraError
from atonce.model import ConsistencyModel
from atonce.serving.recorded import condition_names, example, recorded

Precision = Literal["f32", "bf16"]


def has_bf16() -> bool:
    """Whether the processor computes in bfloat16; OpenVINO emulates it elsewhere, slowly."""
    try:
        import openvino
    except ImportError:
        return False
    return "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


class OpenVINONetwork:
    """F(x, c_noise, label=, guidance=) of a model, compiled for the CPU with any number of rows.

    Args:
        model: The model, on the CPU.
        threads: Threads of a call; default: OpenVINO's choice.
        precision: Of its arithmetic; inputs and outputs are float32.

    Raises:
        MissingExtraError: OpenVINO is not installed.
        InputError: The model is not on the CPU.
    """

    def __init__(self, model: ConsistencyModel, threads: int | None = None, precision: Precision = "f32") -> None:
        try:
            import openvino
        except ImportError as problem:
            raise MissingExtraError("OpenVINO is not installed: pip install 'atonce[cpu]'") from problem
        if model.device.type != "cpu":
            raise InputError(f"OpenVINO runs on the CPU, this model is on {model.device}: leave the backend out")
        self.names, inputs = condition_names(model), example(model)
        inputs = (inputs[0].float(), *inputs[1:])
        graph = openvino.convert_model(recorded(model, copy.deepcopy(model.network).float()), example_input=inputs)
        graph.reshape({0: openvino.PartialShape([-1, *model.shape])} | {i: openvino.PartialShape([-1]) for i in self._others()})
        hints: dict[str, Any] = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if threads is not None:
            hints["INFERENCE_NUM_THREADS"] = threads
        self._request = openvino.Core().compile_model(graph, "CPU", hints).create_infer_request()

    def _others(self) -> range:
        return range(1, 2 + len(self.names))

    def __call__(self, x: Tensor, c_noise: Tensor, **condition: Tensor) -> Tensor:
        """F of a batch.

        Args:
            x: [B, C, H, W].
            c_noise: [B].
            condition: ``label`` int64 [B] and ``guidance`` float32 [B], where the network has them.

        Returns:
            float32 [B, C, H, W].
        """
        values = [x.float(), c_noise.float(), *(condition[name] for name in self.names)]
        self._request.infer([value.contiguous().numpy() for value in values])  # without the interpreter's lock
        return torch.from_numpy(self._request.get_output_tensor().data.copy())

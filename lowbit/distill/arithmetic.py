"""The kinds of low-bit file that a student can be distilled as: simulated in every step, written from what was trained.

    int8_dynamic   INT8, ranges of activations measured at run time
    int8_learned   INT8, ranges learned and in the file, for ONNX Runtime
    int4           4 bits of weights and tables, 8 of the head
"""

import logging
from pathlib import Path

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import nn

from lowbit.data.tokens import Row
from lowbit.graph.agreement import check_against_simulation
from lowbit.graph.export import save_onnx
from lowbit.int4 import arithmetic as int4
from lowbit.int4 import file as int4_file
from lowbit.int4.simulation import start_scales
from lowbit.int8 import arithmetic as int8
from lowbit.int8 import qdq
from lowbit.pipeline.settings import check
from lowbit.training.calibration import calibrate_scales
from lowbit.training.encoder import load_run
from lowbit.training.weights import load_weights

DYNAMIC, LEARNED, INT4 = "int8_dynamic", "int8_learned", "int4"
RANGES = {"TARGET": "onnxruntime", "QUANTIZE_ATTENTION": True}
INT8 = {"PER_CHANNEL": False, "QUANTIZE_EMBEDDINGS": True, "REDUCE_RANGE": False, **RANGES}
ARITHMETIC = {  # the same defaults as the folders of stages have
    DYNAMIC: INT8 | {"ACTIVATION_RANGES": "dynamic"}, LEARNED: INT8 | {"ACTIVATION_RANGES": "learned"},
    INT4: RANGES | {"ACTIVATION_RANGES": "dynamic", "BITS": 4.0, "TABLE_BITS": 4.0, "POSITION_BITS": 8.0,
                    "HEAD_BITS": 8.0}}
CALIBRATION_TEXTS = 512  # that learned ranges start from


def check_kind(kind: str) -> None:
    """Raises UserError for a QAT that is not known; "" is none."""
    check(kind in ("", *ARITHMETIC), f"QAT is {kind!r}; choose {', '.join(ARITHMETIC)}, or leave it empty for FP32")


def simulate_kind(model: nn.Module, kind: str, rows: list[Row] | None) -> nn.Module:
    """Give `model` the arithmetic of a kind of file, in place; scales start from its weights and `rows`, if there are.

    """
    if kind == INT4:
        int4.simulate(model, ARITHMETIC[kind])
        if rows is not None:
            start_scales(model)
    else:
        int8.simulate(model, ARITHMETIC[kind])
        if kind == LEARNED and rows is not None:
            calibrate_scales(model, rows, CALIBRATION_TEXTS)
    return model


def write_kind(folder: Path, kind: str, weights: Path, exported: Path, target: Path) -> tuple[int, float]:
    """Write the file that a student of `folder` was distilled as, from its FP32 graph.

    (stored weights and scales, all equal to the simulation's bit for bit; largest difference of logits to it).
    """
    model = simulate_kind(load_run(folder), kind, None)
    load_weights(model, weights)
    if kind == DYNAMIC:
        logging.getLogger().setLevel(logging.ERROR)  # it recommends a pre-processing that gains nothing here
        quantize_dynamic(onnx.load(exported), target, weight_type=QuantType.QInt8,
                         op_types_to_quantize=["MatMul", "Gather"])
    else:
        write = qdq.quantize if kind == LEARNED else int4_file.quantize
        save_onnx(write(onnx.load(exported), model.eval()), target)
    return check_against_simulation(model.eval(), target)

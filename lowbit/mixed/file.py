"""The file of an assignment, written and shown to hold what is simulated: integers, scales, and the weights left alone.
"""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from lowbit.graph.agreement import check_against_simulation
from lowbit.graph.census import census, census_lines
from lowbit.graph.export import save_onnx
from lowbit.graph.names import module_of
from lowbit.int4.file import quantize
from lowbit.int4.simulation import assign
from lowbit.mixed.assignment import FP32, Assignment, levels_of
from lowbit.training.encoder import load_run
from lowbit.training.weights import WEIGHTS, load_weights

PRECISION = "mixed"


def float_weights(path: Path) -> dict[str, np.ndarray]:
    """Module -> the weight [out, in] or table [rows, width] that a file keeps in FP32."""
    graph = onnx.load(path).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    found = {}
    for node in graph.node:
        place = {"MatMul": 1, "Gemm": 1, "Gather": 0}.get(node.op_type)
        if place is not None and node.input[place] in tensors:
            weight = numpy_helper.to_array(tensors[node.input[place]])
            found[module_of(node)] = weight.T if node.op_type == "MatMul" else weight
    return found


def write_file(exported: Path, model: torch.nn.Module, assignment: Assignment, path: Path) -> dict:
    """Write the file of a simulation from the FP32 graph of its weights; returns its census.

    Raises RuntimeError unless every stored integer, scale and kept weight equals the simulation's bit for bit. Prints
    what was compared.
    """
    save_onnx(quantize(onnx.load(exported), model), path)
    count, worst = check_against_simulation(model, path)
    kept, stored = [name for name, bits in assignment.items() if bits == FP32], float_weights(path)
    for name in kept:
        if name not in stored or not np.array_equal(stored[name], model.get_submodule(name).weight.detach().numpy()):
            raise RuntimeError(f"{path.name} keeps another weight for {name} than the model has")
    counted = census(path)
    print(f"  {count} of {count} stored integers and scales, unpacked, equal the simulation's, and {len(kept)} of "
          f"{len(kept)} weights left in FP32, bit for bit")
    print(f"  logits differ from the simulation by at most {worst:.1e} on random inputs")
    print("  in the graph as ONNX Runtime optimises it:", *census_lines(counted), sep="\n")
    return counted


def load_trained(folder: Path, assignment: Assignment) -> torch.nn.Module:
    """The simulated model of a run of train_qat_mixed.py, with its trained weights and scales, in eval mode."""
    model = assign(load_run(folder), levels_of(assignment))
    load_weights(model, folder / WEIGHTS)
    return model.eval()

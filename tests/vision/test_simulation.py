"""Folding, placement, simulation: equal to the network, to the file bit for bit, and on integers in both runtimes."""

import subprocess
import sys
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from stage_runs import ENVIRONMENT, ROOT
from torch import nn
from torch.nn import functional

from lowbit.graph.census import layer_census, openvino_layer_census
from lowbit.pipeline.errors import UserError
from lowbit.vision import torchvision_import
from lowbit.vision.calibrate import GUARD, METHODS, calibrate
from lowbit.vision.export import INPUT, OUTPUT, check_fp32, check_stored, export, stored_tensors
from lowbit.vision.networks import build, load_published, settle_statistics
from lowbit.vision.placement import fold, layers_of, pairs_of, place_pairs
from lowbit.vision.simulation import FoldedLayer
from lowbit.vision.trt_rules import check

openvino = pytest.importorskip("openvino", reason="openvino is not installed: requirements-openvino.txt")

SIZE = 16
TARGETS = ("tensorrt", "onnxruntime")


class Mixed(nn.Module):
    """All that networks here are made of: BatchNorm, SiLU, a gate by channels, depthwise, MaxPool, a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)
        self.deep, self.deep_norm = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.project, self.silu, self.pool = nn.Conv2d(8, 8, 1), nn.SiLU(inplace=True), nn.MaxPool2d(2)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(8, 7)

    def forward(self, x):
        x = self.pool(functional.relu(self.norm(self.stem(x))))
        y = self.silu(self.deep_norm(self.deep(x)))
        gate = torch.sigmoid(self.excite(functional.silu(self.squeeze(functional.adaptive_avg_pool2d(y, 1)))))
        x = self.project(gate * y) + x
        return self.head(self.drop(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1)))


def pixels(count=4, seed=0, size=SIZE):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = Mixed()
    settle_statistics(model, [pixels(8, 1)])
    return model


@pytest.fixture(scope="module")
def folded(network):
    return fold(network)


def calibrated(folded, target, method="minmax", bits=8, floats=()):
    placed = place_pairs(folded, target, bits, floats)
    calibrate(placed, lambda: [pixels(8, 2), pixels(8, 3)], method)
    return placed


@pytest.fixture(scope="module")
def made(folded, tmp_path_factory):
    """Target -> (simulation, file)."""
    folder, found = tmp_path_factory.mktemp("made"), {}
    for target in TARGETS:
        found[target] = calibrated(folded, target), folder / f"{target}.onnx"
        export(*found[target], SIZE)
    return found


def ask(path, given, runtime="onnxruntime"):
    if runtime == "openvino":
        return openvino.compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(given.numpy())[OUTPUT]
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run([OUTPUT], {INPUT: given.numpy()})[0]


def test_folding_changes_no_answer(network, folded, tmp_path):
    with torch.no_grad():
        assert torch.allclose(network.eval()(pixels()), folded(pixels()), atol=1e-5)
    assert len(layers_of(folded)) == 6
    assert not any(isinstance(module, nn.BatchNorm2d) for module in dict(folded.named_children()).values())
    export(folded, tmp_path / "fp32.onnx", SIZE)
    assert check_fp32(folded, tmp_path / "fp32.onnx", SIZE) < 1e-5
    operators = {node.op_type for node in onnx.load(tmp_path / "fp32.onnx").graph.node}
    assert not operators & {"BatchNormalization", "Identity", "Constant", "QuantizeLinear", "Dropout"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_stores_what_is_simulated_bit_for_bit(made, target):
    model, path = made[target]
    stored = stored_tensors(path)
    assert check_stored(model, path) == len(stored) - unexplained(stored)
    layer = layers_of(model)["stem"]
    weight, _ = layer.folded()
    scale = stored["stem.weight.scale"]
    by_hand = np.clip(np.round(weight.detach().numpy() / scale[:, None, None, None]), -127, 127)
    assert stored["stem.weight.integers"].dtype == np.int8
    assert np.array_equal(stored["stem.weight.integers"], by_hand)
    assert np.allclose(scale, np.abs(weight.detach().numpy()).reshape(8, -1).max(1) / 127)


def unexplained(stored):
    """Constants of other operators, such as the bounds of a slice."""
    return sum(not any(part in name for part in ("weight", "bias", "pairs")) for name in stored)


def test_a_changed_bit_is_found(made, tmp_path):
    model, path = made["tensorrt"]
    changed = onnx.load(path)
    tensor = next(each for each in changed.graph.initializer if each.name == "stem.stored_weight_integers")
    tensor.raw_data = bytes([tensor.raw_data[0] ^ 1]) + tensor.raw_data[1:]
    onnx.save(changed, tmp_path / "changed.onnx")
    with pytest.raises(RuntimeError, match="stem.weight.integers"):
        check_stored(model, tmp_path / "changed.onnx")


@pytest.mark.parametrize("target", TARGETS)
def test_the_file_answers_as_the_simulation(made, target):
    """Rounding borders aside, which are a step of the head's own scale."""
    model, path = made[target]
    given = pixels(16, 9)
    with torch.no_grad():
        expected = model(given).numpy()
    answers = ask(path, given, "openvino" if target == "tensorrt" else "onnxruntime")
    assert np.abs(answers - expected).max() < 0.05 * np.abs(expected).max()
    assert np.median(np.abs(answers - expected)) < 0.005 * np.abs(expected).max()
    assert (answers.argmax(-1) == expected.argmax(-1)).mean() >= 0.9
    assert not np.array_equal(expected, model_floats(model, given))


def model_floats(model, given):
    """What the network answers with every pair and weight in FP32."""
    for pair in pairs_of(model).values():
        pair.enabled = False
    bits = {layer: layer.bits for layer in layers_of(model).values()}
    for layer in bits:
        layer.bits = 0
    with torch.no_grad():
        answers = model(given).numpy()
    for pair in pairs_of(model).values():
        pair.enabled = True
    for layer, held in bits.items():
        layer.bits = held
    return answers


def test_every_layer_runs_on_integers(made):
    assert check(made["tensorrt"][1]) == []
    in_openvino, in_onnxruntime = openvino_layer_census(made["tensorrt"][1]), layer_census(made["onnxruntime"][1])
    assert (in_openvino["integer"], in_openvino["float"]) == (6, 0)
    assert (in_onnxruntime["integer"], in_onnxruntime["float"]) == (6, 0)


def test_a_float_file_has_no_integer_layer(folded, tmp_path):
    export(folded, tmp_path / "fp32.onnx", SIZE)
    for found in (openvino_layer_census(tmp_path / "fp32.onnx"), layer_census(tmp_path / "fp32.onnx")):
        assert (found["integer"], found["float"]) == (0, 6)


def test_pairs_stand_where_tensorrt_wants_them(made):
    """On the input of each layer and on the shortcut, none on the main branch or before an activation."""
    graph = onnx.load(made["tensorrt"][1]).graph
    maker = {node.output[0]: node for node in graph.node}
    for node in graph.node:
        kinds = [maker[name].op_type if name in maker else "stored" for name in node.input]
        if node.op_type in ("Conv", "Gemm"):
            assert kinds[:2] == ["DequantizeLinear"] * 2
            assert kinds[2] == "stored"
        if node.op_type == "Add":
            assert sorted(kinds) == ["Conv", "DequantizeLinear"]
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == len(pairs_of(made["tensorrt"][0]))


def test_float_layers_keep_their_weight_and_input(folded, tmp_path):
    placed = calibrated(folded, "tensorrt", floats=("deep", "head"))
    export(placed, tmp_path / "mixed.onnx", SIZE)
    kept = stored_tensors(tmp_path / "mixed.onnx")
    assert np.array_equal(kept["deep.weight"], layers_of(folded)["deep"].folded()[0].detach().numpy())
    found = openvino_layer_census(tmp_path / "mixed.onnx")
    assert (found["integer"], found["float"]) == (4, 2)
    assert {finding.node for finding in check(tmp_path / "mixed.onnx")} == {"/deep/Conv", "/head/Gemm"}
    assert check(tmp_path / "mixed.onnx", ("/deep/Conv", "/head/Gemm")) == []
    with pytest.raises(UserError, match="no layer 'nowhere'"):
        place_pairs(folded, "tensorrt", 8, ("nowhere",))


def test_four_bits_have_fifteen_levels_and_a_trained_scale(folded):
    placed = calibrated(folded, "tensorrt", bits=4)
    layer = layers_of(placed)["stem"]
    integers = layer.stored()["weight.integers"]
    assert integers.abs().max() == 7
    assert torch.unique(integers).numel() <= 15
    placed(pixels()).square().sum().backward()
    assert layer.log_scale.grad.abs().sum() > 0
    assert layer.weight.grad.abs().sum() > 0


def test_gradients_reach_weights_norms_and_scales(folded):
    placed = calibrated(folded, "tensorrt")
    placed(pixels()).square().sum().backward()
    layer, scales = layers_of(placed)["stem"], [pair.scale.grad for pair in pairs_of(placed).values()]
    assert layer.weight.grad.abs().sum() > 0
    assert layer.norm_weight.grad.abs().sum() > 0
    assert all(gradient is not None for gradient in scales)
    assert sum(float(gradient.abs()) > 0 for gradient in scales) >= len(scales) - 1


def test_minmax_is_the_range_that_was_seen(folded):
    placed = calibrated(folded, "tensorrt")
    seen = torch.cat([pixels(8, 2), pixels(8, 3)]).abs().max()
    assert np.isclose(pairs_of(placed)["x"].scale.item(), float(seen) / 127)
    twin = pairs_of(calibrated(folded, "onnxruntime"))["x"]
    low, high = (bound * twin.scale.item() for bound in twin.bounds())
    both = torch.cat([pixels(8, 2), pixels(8, 3)])
    assert abs(low - float(both.min())) <= twin.scale.item()
    assert abs(high - float(both.max())) <= twin.scale.item()


@pytest.mark.parametrize("method", METHODS[1:])
@pytest.mark.parametrize("target", TARGETS)
def test_the_guard_keeps_every_error_within_its_bound(folded, method, target):
    """Of a tensor with a few outliers the histogram methods take less than the whole range, or are put back by name."""
    given = [torch.cat([pixels(8, 2) * 0.02, pixels(1, 5)])]
    placed = place_pairs(folded, target, 8)
    refused = calibrate(placed, lambda: given, method)
    plain = place_pairs(folded, target, 8)
    calibrate(plain, lambda: given, "minmax")
    whole, found = pairs_of(plain)["x"], pairs_of(placed)["x"]
    assert ("x" in refused) == (found.scale.item() == whole.scale.item())

    def error(pair):
        with torch.no_grad():
            return float((pair(given[0]) - given[0]).square().sum())

    assert error(found) <= GUARD * error(whole) * 1.01
    assert all(note["error"] > GUARD or note["range"][1] <= note["range"][0] for note in refused.values())


def test_an_unknown_method_or_target_is_refused(folded):
    with pytest.raises(UserError, match="METHOD is 'max'"):
        calibrate(place_pairs(folded, "tensorrt", 8), lambda: [pixels()], "max")
    with pytest.raises(UserError, match="TARGET is 'gpu'"):
        place_pairs(folded, "gpu", 8)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        return self.layer(self.layer(x))


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_networks_that_cannot_be_simulated_are_refused():
    with pytest.raises(UserError, match="uses the layer layer twice"):
        fold(Twice())
    with pytest.raises(UserError, match="cannot be traced"):
        fold(Deciding())
    with pytest.raises(UserError, match="MODEL is 'alexnet'"):
        build("alexnet", 10)


def test_weights_that_do_not_fit_are_refused_and_another_head_is_new(tmp_path):
    model = build("resnet20", 10)
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in model.state_dict().items()}},
               tmp_path / "whole.th")
    assert "weights of" in load_published(build("resnet20", 10), "resnet20", str(tmp_path / "whole.th"))
    other = build("resnet20", 4)
    assert "its head new" in load_published(other, "resnet20", str(tmp_path / "whole.th"))
    assert torch.equal(other.conv1.weight, model.conv1.weight)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "part.th")
    with pytest.raises(UserError, match="does not fit resnet20"):
        load_published(build("resnet20", 10), "resnet20", str(tmp_path / "part.th"))
    (tmp_path / "text.th").write_text("no weights")
    with pytest.raises(UserError, match="holds no plain weights"):
        load_published(build("resnet20", 10), "resnet20", str(tmp_path / "text.th"))
    with pytest.raises(UserError, match="no published weights"):
        load_published(build("resnet20", 10), "resnet20", "default")


def test_resnet20_has_its_published_size():
    assert sum(parameter.numel() for parameter in build("resnet20", 10).parameters()) == 269_722


def test_the_wing_imports_no_transformers():
    """It would import torchvision, before the operators that this asks for are declared."""
    stems = {path.stem for path in (ROOT / "lowbit" / "vision").glob("*.py")} - {"__init__"}
    names = sorted(f"lowbit.vision.{stem}" for stem in stems)
    code = (f"import importlib, sys\nfor name in {names}:\n    importlib.import_module(name)\n"
            "print('transformers' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


torchvision = pytest.mark.skipif(not (ROOT / ".venv" / "torchvision").is_dir(),
                                 reason="requirements-vision.txt is not installed")


@torchvision
@pytest.mark.parametrize(("name", "layers", "size"), [("resnet50", 54, 32), ("efficientnet_b0", 82, 32),
                                                      ("efficientnet_lite0", 50, 224)])
def test_networks_keep_the_rules_and_fold_exactly(name, layers, size, tmp_path):
    """In a process of its own: importing torchvision declares operators."""
    code = f"""
import torch
from pathlib import Path
from lowbit.vision.export import export
from lowbit.vision.networks import build, load_published
from lowbit.vision.placement import fold, layers_of, place_pairs
from lowbit.vision.trt_rules import check
torch.manual_seed(0)
model = build({name!r}, 1000).eval()
print(load_published(model, {name!r}, "default" if {name!r}.endswith("lite0") else "none"))
folded, pixels = fold(model), torch.randn(1, 3, {size}, {size})
with torch.no_grad():
    ours, theirs = folded(pixels), model(pixels)
print(bool((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()), len(layers_of(folded)))
export(place_pairs(folded, "tensorrt", 8), Path({str(tmp_path)!r}) / "int8.onnx", {size})
print(check(Path({str(tmp_path)!r}) / "int8.onnx"))
twin = place_pairs(folded, "onnxruntime", 8)
print(sum(layer.source is not None for layer in layers_of(twin).values()))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert said[1:] == [f"True {layers}", "[]", str(layers)]


def test_a_layer_without_norm_or_bias_is_itself():
    plain = nn.Linear(4, 3, bias=False)
    layer = FoldedLayer(plain)
    assert layer.folded() == (plain.weight, None)
    assert torch.equal(layer(torch.ones(2, 4)), plain(torch.ones(2, 4)))


def test_a_torchvision_that_imports_by_itself_is_left_alone(monkeypatch):
    """No operator is declared; one that stops for another reason keeps its error."""
    found = ModuleType("torchvision.models")
    monkeypatch.setitem(sys.modules, "torchvision.models", found)
    assert torchvision_import.torchvision_models() is found
    assert torchvision_import._declared == []

    def broken(name):
        raise RuntimeError("another fault")

    monkeypatch.setattr(torchvision_import, "package", broken)
    with pytest.raises(RuntimeError, match="another fault"):
        torchvision_import.torchvision_models()


def test_an_absent_package_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(torchvision_import, "FOLDER", tmp_path / "none")
    with pytest.raises(UserError, match="no_such_package is not installed: `pip install"):
        torchvision_import.package("no_such_package")

"""Few levels without training: rounding, GPTQ's compensation, the file that both are written into."""

import numpy as np
import onnx
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from lowbit.graph.census import census
from lowbit.graph.export import export
from lowbit.int4.levels import LEVELS
from lowbit.int4.rounding import best_scales, to_levels
from lowbit.ptq.per_channel import compensated, quantize_per_channel, second_moments, weights_of

LINEAR_LAYERS, TABLES = 14, 2  # of words and positions; token types stay FP32


@pytest.fixture(scope="module")
def source(tiny_model, tmp_path_factory):
    """The exported FP32 graph of the tiny model."""
    torch.manual_seed(3)
    config = AutoConfig.from_pretrained(tiny_model, num_labels=3)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation="eager").eval()
    path = tmp_path_factory.mktemp("source") / "fp32.onnx"
    export(model, path, 17)
    return path


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [{"input_ids": rng.integers(5, 400, length).tolist()} for length in rng.integers(3, 30, 40)]


@pytest.mark.parametrize("bits", [4.0, 2.0])
def test_compensation_lowers_the_error_of_the_outputs(bits):
    """On inputs that correlate, GPTQ's levels give outputs nearer to FP32's than rounding to nearest does."""
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.standard_normal((2000, 64)) @ rng.standard_normal((64, 64))).float()
    weight, levels = torch.from_numpy(rng.standard_normal((32, 64))).float(), LEVELS[bits]
    scale = best_scales(weight, levels)
    found = compensated(weight, scale, levels, x.T @ x)
    assert set(found.unique().int().tolist()) <= set(levels.integers().tolist())
    errors = [float(((integers * scale[:, None] - weight) @ x.T).square().sum())
              for integers in (found, to_levels(weight / scale[:, None], levels))]
    assert errors[0] < 0.8 * errors[1]


def test_uncorrelated_inputs_leave_rounding_as_it_is():
    """Where no column can make another's error good, GPTQ is rounding to nearest."""
    weight, levels = torch.randn(8, 16, generator=torch.Generator().manual_seed(0)), LEVELS[2.0]
    scale = best_scales(weight, levels)
    found = compensated(weight, scale, levels, torch.eye(16))
    assert torch.equal(found, to_levels(weight / scale[:, None], levels))


def test_second_moments_are_those_of_the_layers_inputs(source, rows, tmp_path):
    """Symmetric, of the input's width, of as many tokens as the texts have: checked on the first layer's diagonal."""
    second_moments(source, tmp_path / "moments.npz", rows)
    moments = np.load(tmp_path / "moments.npz")
    assert len(moments.files) == LINEAR_LAYERS - 2
    for name, (_, weight) in weights_of(onnx.load(source).graph).items():
        if name in moments.files:
            assert moments[name].shape == (weight.shape[1],) * 2
            np.testing.assert_allclose(moments[name], moments[name].T, rtol=1e-4, atol=1e-3)
    tokens = sum(len(row["input_ids"]) for row in rows)
    # a LayerNorm's outputs have mean square 1, so that their moments sum to width * tokens
    first = moments["bert.encoder.layer.0.attention.self.query"]
    assert np.trace(first) == pytest.approx(32 * tokens, rel=1e-2)


@pytest.mark.parametrize("with_moments", [False, True])
def test_file_is_packed_and_runs_on_integers(source, rows, tmp_path, with_moments):
    """The same file as QAT's: unpacked when loaded, no layer and no table on floats."""
    moments = tmp_path / "moments.npz" if with_moments else None
    if with_moments:
        second_moments(source, moments, rows)
    quantize_per_channel(source, tmp_path / "q.onnx", 2.0, 4.0, moments)
    found = census(tmp_path / "q.onnx")
    assert found["linear"] == {"integer": LINEAR_LAYERS, "float": 0}
    assert found["embedding"] == {"integer": TABLES, "float": 0}
    packed = LINEAR_LAYERS + TABLES - 3  # the head and positions have 8 bits
    assert found["packed"] == {"stored": packed, "unpacked_at_load": packed, "rows": 0}

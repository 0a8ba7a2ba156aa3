"""Levels, their bytes, the scales of least error, and the gradients that train them."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lowbit.int4.levels import LEVELS, levels_of, pack, table_of
from lowbit.int4.rounding import best_scales, to_levels
from lowbit.int4.simulation import DynamicFewLevelLinear, _ToLevels
from lowbit.pipeline.errors import UserError
from lowbit.training.integer_linear import dynamic_range

bits = pytest.mark.parametrize("bits", LEVELS)
packed_bits = pytest.mark.parametrize("bits", [4.0, 2.0, 1.6])


@packed_bits
@given(rows=st.integers(1, 5), columns=st.integers(1, 23), seed=st.integers(0, 99))
def test_packed_rows_come_back_by_look_up(bits, rows, columns, seed):
    """table[bytes], cut to the columns, is what was packed; a byte holds 2, 4 or 5 weights."""
    levels = LEVELS[bits]
    integers = np.random.default_rng(seed).choice(levels.integers(), (rows, columns))
    packed = pack(integers, levels)
    assert packed.dtype == np.uint8
    assert packed.shape == (rows, -(-columns // {4.0: 2, 2.0: 4, 1.6: 5}[bits]))
    np.testing.assert_array_equal(table_of(levels)[packed].reshape(rows, -1)[:, :columns], integers)


@packed_bits
def test_two_bytes_are_one_number(bits):
    """Wide packing is that of bytes, two at a time, the first in the lower place."""
    levels = LEVELS[bits]
    integers = np.random.default_rng(0).choice(levels.integers(), (7, 80))
    narrow, wide = pack(integers, levels).astype(int), pack(integers, levels, wide=True)
    assert wide.dtype == np.uint16
    np.testing.assert_array_equal(wide, narrow[:, ::2] + levels.base**levels.a_byte * narrow[:, 1::2])


def test_levels_are_those_of_the_readme():
    """16 and 4 levels symmetric around zero without it, three with it; eight bits stop where sums would saturate."""
    assert LEVELS[2.0].integers().tolist() == [-3, -1, 1, 3]
    assert LEVELS[4.0].integers().tolist() == list(range(-15, 16, 2))
    assert LEVELS[1.6].integers().tolist() == [-1, 0, 1]
    assert all(2 * 255 * int(levels.integers().max()) < 2**15 for levels in LEVELS.values())
    assert all(table_of(levels).dtype == np.int8 for levels in LEVELS.values())


@bits
def test_each_weight_goes_to_its_nearest_level(bits):
    """Against the distances to all levels, one by one."""
    levels = LEVELS[bits]
    ratio = np.random.default_rng(0).standard_normal(4000).astype(np.float32) * levels.top * 0.7
    found = to_levels(torch.from_numpy(ratio), levels).numpy()
    assert set(found) <= set(levels.integers())
    nearest = np.abs(ratio[:, None] - levels.integers()).min(1)
    np.testing.assert_allclose(np.abs(ratio - found), nearest, rtol=1e-6)


@bits
@pytest.mark.parametrize("spread", [lambda rng, size: rng.standard_normal(size),
                                    lambda rng, size: rng.laplace(size=size),
                                    lambda rng, size: rng.standard_t(2, size)], ids=["normal", "laplace", "tails"])
def test_scale_of_least_error_is_found(bits, spread):
    """Within 5 % of the least squared error over 2,000 scales, row by row; 10 % where all errors are small."""
    levels = LEVELS[bits]
    rows = torch.from_numpy(spread(np.random.default_rng(1), (6, 400)).astype(np.float32)) * 0.03

    def error(scale):
        return (to_levels(rows / scale, levels) * scale - rows).square().sum(1)

    reaches = torch.linspace(0.05, 1.01, 2000)[:, None, None] * rows.abs().amax(1, keepdim=True) / levels.top
    least = torch.stack([error(scale) for scale in reaches]).amin(0)
    assert (error(best_scales(rows, levels)[:, None]) <= (1.05 if bits < 8 else 1.1) * least).all()


def test_rows_of_zeros_and_of_one_value_have_a_scale():
    """No infinity, no zero to divide by."""
    rows = torch.tensor([[0.0] * 8, [0.3] * 8, [-1e-30] * 8])
    for levels in LEVELS.values():
        scales = best_scales(rows, levels)
        assert (scales > 0).all()
        assert scales.isfinite().all()


@packed_bits
def test_gradients_are_lsqs(bits):
    """Esser et al. 2020, equation 3, in NumPy: the rounding error inside the outermost levels, the level outside."""
    levels, scale = LEVELS[bits], 0.02
    weight = np.random.default_rng(2).standard_normal((3, 500)).astype(np.float32) * 0.02 * levels.top
    upstream = np.random.default_rng(3).standard_normal(weight.shape).astype(np.float32)
    given = torch.tensor(weight, requires_grad=True)
    log_scale = torch.full((3,), np.log(scale), dtype=torch.float32, requires_grad=True)
    integers = _ToLevels.apply(given, log_scale, levels)
    (integers * log_scale.detach().exp()[:, None] * torch.tensor(upstream)).sum().backward()
    ratio = weight / scale
    inside = np.abs(ratio) <= levels.top
    assert 0.05 < 1 - inside.mean() < 0.6
    slope = np.where(inside, integers.detach().numpy() - ratio, integers.detach().numpy())
    expected = (upstream * slope).sum(1) * scale / np.sqrt(500 * levels.top)
    np.testing.assert_allclose(log_scale.grad.numpy(), expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(given.grad.numpy(), upstream * inside, rtol=1e-5)


def test_linear_multiplies_integers_and_scales_them_once():
    """y of a layer in NumPy, by the formula at the top of the module."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(24, 16)
    layer.levels, layer.log_scale = LEVELS[2.0], torch.nn.Parameter(torch.zeros(16))
    layer.__class__ = DynamicFewLevelLinear
    layer.start_from_weight()
    x = torch.randn(3, 5, 24)
    scale, zero_point = (part.numpy() for part in dynamic_range(x))
    stored = {part: tensor.numpy() for part, tensor in layer.stored().items()}
    assert stored["weight.integers"].dtype == np.int8
    assert set(np.unique(stored["weight.integers"])) == {-3, -1, 1, 3}
    x_int = np.clip(np.rint(x.numpy() / scale) + zero_point, 0, 255) - zero_point
    product = x_int @ stored["weight.integers"].astype(np.float32).T
    expected = product * (scale * stored["weight.scale"]) + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("given", "said"), [(3.0, "BITS is 3; choose 8, 4, 2, 1.6"), (0.0, "BITS is 0; choose")])
def test_other_bits_are_refused(given, said):
    """With the bits that there are."""
    with pytest.raises(UserError, match=said):
        levels_of(given, "BITS")

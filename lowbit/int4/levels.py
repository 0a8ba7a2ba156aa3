"""The levels that a weight may take, and how several of them share a byte of the file.

    packed = sum of code[j] * base**j, j < a_byte        code: 0 to base - 1, a weight's place among its levels
    levels = table[packed]                               table [base**a_byte, a_byte], int8: the look-up of the file

An even number of levels lies symmetric around zero without holding it: -1.5, -0.5, 0.5, 1.5 are stored as the odd
integers -3, -1, 1, 3 at half the scale. Eight bits are held to 63, so that sums of products never saturate on a CPU
without VNNI (2 * 255 * 63 < 2**15); fewer bits are far below that.
"""

from typing import NamedTuple

import numpy as np

from lowbit.pipeline.errors import UserError


class Levels(NamedTuple):
    """Integers from -top to top, `step` apart; `a_byte` of them are packed into a byte of the file."""

    top: int
    step: int
    a_byte: int

    def integers(self) -> np.ndarray:
        """Every level, ascending, int8."""
        return np.arange(-self.top, self.top + 1, self.step).astype(np.int8)

    @property
    def base(self) -> int:
        """How many levels there are."""
        return 2 * self.top // self.step + 1


LEVELS = {8.0: Levels(63, 1, 1), 4.0: Levels(15, 2, 2), 2.0: Levels(3, 2, 4), 1.6: Levels(1, 1, 5)}


def levels_of(bits: float, setting: str, known=tuple(LEVELS)) -> Levels:
    """The levels of a number of bits; raises UserError, naming the setting, unless it is among `known`."""
    if bits not in known:
        raise UserError(f"{setting} is {bits:g}; choose {', '.join(f'{one:g}' for one in known)}")
    return LEVELS[bits]


def table_of(levels: Levels) -> np.ndarray:
    """The look-up table [base**a_byte, a_byte], int8: the levels that each byte stands for."""
    codes = np.arange(levels.base**levels.a_byte)[:, None] // levels.base**np.arange(levels.a_byte) % levels.base
    return levels.integers()[codes]


def pack(integers: np.ndarray, levels: Levels, wide: bool = False) -> np.ndarray:
    """Levels [rows, columns] as bytes [rows, ceil(columns / a_byte)], uint8; a row's last byte is filled up.

    `wide` makes numbers of two bytes, uint16, of twice as many weights each.
    """
    together = levels.a_byte * (1 + wide)
    codes = ((integers.astype(np.int16) + levels.top) // levels.step).astype(np.uint16)
    codes = np.pad(codes, ((0, 0), (0, -codes.shape[1] % together)))
    packed = np.zeros((len(codes), codes.shape[1] // together), np.uint16)
    for place in range(together):
        packed += codes[:, place::together] * np.uint16(levels.base**place)
    return packed if wide else packed.astype(np.uint8)

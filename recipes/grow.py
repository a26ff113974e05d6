"""Makes trained native weights larger without changing what they answer, a fresh refiner of pixels and its new moves aside. From
there `longshot train puppets --init` goes on.

    python recipes/grow.py SMALL.safetensors LARGE.safetensors --doubled 2 4 --detail-width 896 --refiner 64 3

How the tiny base went from 6 blocks to its 8.
"""

from pathlib import Path

import torch
import tyro

from longshot.bases.native import NativeBase, NativeConfig
from longshot.model.grow import grow
from longshot.model.refine import Move


def main(
    small: tyro.conf.Positional[Path],
    large: tyro.conf.Positional[Path],
    doubled: tuple[int, ...] = (),
    detail_width: int | None = None,
    refiner: tuple[int, int] | None = None,
    moves: tuple[Move, ...] | None = None,
) -> None:
    """Writes the larger weights.

    Args:
        small: Weights of a native base.
        large: Where the larger ones go, in fp32.
        doubled: Blocks, counted from 0, that are followed by a copy of themselves that does nothing at first.
        detail_width: Hidden units of the detail head.
        refiner: Width and depth of a fresh pixel refiner; without it the old one stays.
        moves: With which the refiner is shown the last picture of the shot before: pixels to the right
            at once, pixels a frame, and pixels up at once.
    """
    base = NativeBase.load(small)
    network = grow(base.network, doubled, detail_width, refiner, moves)
    NativeBase(NativeConfig(base.spec, network.config), network).save(large, torch.float32)


if __name__ == "__main__":
    tyro.cli(main)

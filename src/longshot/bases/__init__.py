"""The bases that longshot runs: `load_base` opens one by name or file."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from longshot.errors import UserError

if TYPE_CHECKING:
    from longshot.bases.native import NativeBase

ASSETS = Path(__file__).parent / "assets"
Weights = Literal["bidirectional", "causal"]


def load_base(name: str = "tiny", weights: Weights = "bidirectional") -> "NativeBase":
    """The base that ships with longshot (`tiny`, with weights for full or for context-causal attention), or a weights file.

    Raises UserError for an unknown name, or a file that isn't the weights of a base.
    """
    from longshot.bases.native import NativeBase

    if name == "tiny":
        return NativeBase.load(ASSETS / f"tiny-{weights}.safetensors")
    path = Path(name)
    if path.suffix == ".safetensors":
        if not path.is_file():
            raise UserError(f"{name}: there is no such weights file")
        return NativeBase.load(path)
    raise UserError(f"no base {name!r}: use tiny, or a .safetensors file that `longshot train` wrote")

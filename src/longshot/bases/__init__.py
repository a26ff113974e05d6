"""The bases that longshot runs: `load_base` opens one by name, file, folder or hub repository."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from longshot.errors import UserError

if TYPE_CHECKING:
    import torch

    from longshot.bases.base import Base, Spec

ASSETS = Path(__file__).parent / "assets"
Weights = Literal["bidirectional", "causal"]

# The pretrained bases that have a short name, and where their weights lie in diffusers' layout.
REPOSITORIES = {
    "wan2.2-ti2v-5b": "Wan-AI/Wan2.2-TI2V-5B-Diffusers",
    "wan2.1-t2v-1.3b": "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    "wan2.1-t2v-14b": "Wan-AI/Wan2.1-T2V-14B-Diffusers",
    "hunyuanvideo-1.5": "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v",
    "ltx-2": "Lightricks/LTX-2",
}


def is_native(name: str) -> bool:
    """Whether a name means the base that ships, or a weights file of `longshot train`."""
    return name == "tiny" or Path(name).suffix == ".safetensors"


def is_published(name: str) -> bool:
    """Whether a name means weights that others published for several shots, see `longshot.bases.published`."""
    from longshot.bases import published

    return published.is_published(name)


def refuse_preset(name: str) -> None:
    """UserError for the name of a preset that has no weights."""
    from longshot.bases.native import PRESETS

    if name in PRESETS and not is_native(name):
        raise UserError(f"{name}: is a preset to plan with and to train; no weights of it ship")


def check_transformer(name: str, transformer: Path) -> None:
    """UserError for a file that can't stand for a base's transformer: by its kind, or since the base has none to replace."""
    from longshot.bases.native import PRESETS
    from longshot.bases.single import check_file

    check_file(transformer)
    if name in PRESETS or is_native(name):
        raise UserError(
            f"{transformer}: stands for the transformer of a pretrained base; name that with --base"
        )
    if is_published(name):
        raise UserError(
            f"--transformer {transformer}: {name} has a transformer of its own, from `longshot convert`: leave it out"
        )


def load_base(
    name: str = "tiny",
    weights: Weights = "bidirectional",
    dtype: "torch.dtype | None" = None,
    transformer: Path | None = None,
    read_text: bool = True,
) -> "Base":
    """A base: `tiny`, which ships with longshot (with weights for full or for context-causal attention); a weights file that
    `longshot train` wrote; a name that `longshot bases` lists; a diffusers folder; or `owner/repository` on the hub, with
    `@revision` to pin one.

    dtype: of a pretrained base's networks, fp32 if not given. transformer: one file (safetensors or GGUF) with its transformer,
    in the place of the folder's own. read_text: False loads no text encoder of a pretrained base, for training on stored
    features. Raises UserError for an unknown name, and for a file or folder that isn't the whole weights
    of a base.
    """
    if transformer is not None:
        check_transformer(name, transformer)
    if is_native(name):
        from longshot.bases.native import NativeBase

        return NativeBase.load(ASSETS / f"tiny-{weights}.safetensors" if name == "tiny" else Path(name))
    refuse_preset(name)
    import torch

    from longshot.bases.hub import need_diffusers, open_folder

    dtype = torch.float32 if dtype is None else dtype
    if is_published(name):
        from longshot.bases import published

        return published.load(name, dtype)
    need_diffusers(name)
    folder = replace(open_folder(place_of(name), name=name), transformer=transformer)
    return _family(folder).load(folder, dtype, read_text=read_text)


def text_identity(name: str) -> str | None:
    """A hash of what reads a pretrained base's prompts, see `hub.text_identity`; None for one that stored features don't serve: a
    native base, whose text transformer learns along, and weights that others published for several shots."""
    if is_native(name) or is_published(name):
        return None
    from longshot.bases import hub

    refuse_preset(name)
    return hub.text_identity(hub.open_folder(place_of(name), name=name))


def load_spec(name: str) -> "Spec":
    """The facts of a base, from its config alone: no weights are read."""
    from longshot.bases.native import PRESETS, config_of

    if name in PRESETS or is_native(name):
        return config_of(name).spec
    from longshot.bases.shape import known_shapes, load_shape

    if is_published(name):
        return load_shape(name).spec
    if name in (known := known_shapes()):
        return known[name].spec
    from longshot.bases.hub import open_folder

    folder = open_folder(place_of(name), weights=False, name=name)
    return _family(folder).spec_of(folder)


def place_of(name: str) -> str:
    short, at, revision = name.partition("@")
    return f"{REPOSITORIES[short]}{at}{revision}" if short in REPOSITORIES else name


def _family(folder):
    """The class that runs the pipeline in a folder."""
    if folder.pipeline == "WanPipeline":
        from longshot.bases.wan import WanBase

        return WanBase
    if folder.pipeline == "HunyuanVideo15Pipeline":
        from longshot.bases.hunyuan15 import Hunyuan15Base

        return Hunyuan15Base
    if folder.pipeline == "LTX2Pipeline":
        from longshot.bases.ltx2 import LTX2Base

        return LTX2Base
    raise UserError(
        f"{folder.path}: holds a {folder.pipeline}; longshot runs WanPipeline, HunyuanVideo15Pipeline and LTX2Pipeline"
    )

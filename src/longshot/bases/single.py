"""A transformer out of one file, as people share them: safetensors in diffusers' names or the family's own, or GGUF.

The rest of the pipeline (configs, VAE, text encoder) comes from the base's folder. Reading is diffusers' own
(`from_single_file`, `GGUFQuantizationConfig`), made strict: diffusers leaves out what it doesn't know and says nothing of what is
missing. A GGUF's matrices stay as narrow as they are in the file, and are widened a layer at a time.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from longshot.bases.ltx2_names import ltx2_name
from longshot.bases.wan_names import wan_name
from longshot.errors import UserError

KINDS = (".safetensors", ".gguf")
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.")


def load_single(cls: Any, file: Path, folder: Path, dtype: torch.dtype) -> Any:
    """The network of a class with the weights of one file and the config in `folder/transformer`, strictly.

    A class that diffusers reads no single files of takes safetensors in diffusers' own names. Raises UserError for a file that
    isn't there, of another kind or another network.
    """
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES

    check_file(file)
    is_readable = cls.__name__ in SINGLE_FILE_LOADABLE_CLASSES
    if file.suffix == ".gguf" and not is_readable:
        raise UserError(f"{file}: diffusers reads no GGUF of {cls.__name__}; use safetensors")
    with torch.device("meta"):
        wanted = set(cls.from_config(cls.load_config(folder, subfolder="transformer")).state_dict())
    found = {_tensor_name(cls.__name__, tensor.name) for tensor in contents(file)}
    for name in sorted(found ^ wanted):
        what = "is missing" if name in wanted else "belongs to another network"
        named = "" if is_readable else ", in diffusers' names"
        raise UserError(f"{file}: the tensor {name} {what}; {folder.name} has the config it must fit{named}")
    if not is_readable:
        return _with_state(cls, file, folder, dtype)
    options: dict[str, Any] = {"config": str(folder), "subfolder": "transformer", "torch_dtype": dtype}
    if file.suffix == ".gguf":
        from diffusers import GGUFQuantizationConfig

        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    try:
        network = cls.from_single_file(str(file), **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(f"{file}: can't be loaded ({(lines or [type(error).__name__])[0][:200]})") from error
    bare = [name for name, weight in network.named_parameters() if weight.is_meta]
    if bare:
        raise UserError(f"{file}: the tensor {bare[0]} could not be read")
    return network.eval().requires_grad_(False)


def _with_state(cls: Any, file: Path, folder: Path, dtype: torch.dtype) -> Any:
    """A network whose tensors lie in one safetensors file under their own names."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        network = cls.from_config(cls.load_config(folder, subfolder="transformer"))
    whole = cls._keep_in_fp32_modules or ()  # as diffusers loads it from a folder
    state = {}
    with safe_open(file, "pt") as tensors:
        for name, own in network.state_dict().items():
            key = next(k for k in (name, *(f"{p}{name}" for p in PREFIXES)) if k in tensors.keys())  # noqa: SIM118
            if tensors.get_slice(key).get_shape() != list(own.shape):
                raise UserError(
                    f"{file}: the tensor {name} has another shape than {folder.name}'s config says"
                )
            kept = any(part in name.split(".") for part in whole)
            state[name] = tensors.get_tensor(key).to(torch.float32 if kept else dtype)
    network.load_state_dict(state, assign=True)
    return network.eval().requires_grad_(False)


def check_file(file: Path) -> None:
    """UserError for what can't be the file of a transformer, before anything is fetched or loaded."""
    if file.suffix not in KINDS:
        raise UserError(f"{file}: a transformer is read from {' or '.join(KINDS)}; nothing else is opened")
    if not file.is_file():
        raise UserError(f"{file}: there is no such weights file")
    if file.suffix == ".gguf" and find_spec("gguf") is None:
        raise UserError(f"{file}: reading GGUF needs one more package: pip install 'longshot[gguf]'")


def is_quantised(network: Any) -> bool:
    """Whether a network came out of a GGUF, so that its matrices can't be changed."""
    return getattr(network, "hf_quantizer", None) is not None


def is_narrow(weight: Any) -> bool:
    """Whether a tensor is kept as a GGUF has it, so that nothing can be added to it."""
    return hasattr(weight, "quant_type")


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. bytes: in memory for good, where it stays as narrow as it is; None where it is widened when loaded."""

    name: str
    numbers: int
    bytes: int | None = None


def contents(file: Path) -> list[Stored]:
    """The tensors of a file, from its header. Raises UserError for one that can't be read."""
    try:
        if file.suffix == ".gguf":
            from gguf import GGMLQuantizationType, GGUFReader

            widened = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)  # as diffusers has it
            return [
                Stored(t.name, int(t.n_elements), None if t.tensor_type in widened else int(t.n_bytes))
                for t in GGUFReader(file).tensors
            ]
        with safe_open(file, "pt") as tensors:
            shapes = {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
            return [Stored(name, prod(shape)) for name, shape in shapes.items()]
    except (SafetensorError, OSError, ValueError, KeyError, IndexError) as error:
        raise UserError(f"{file}: not a readable {file.suffix[1:]} file ({error})") from error


def diffusers_name(network: str, name: str) -> str:
    """diffusers' name of a module, or of a bare tensor, that a file may name as the family's own code does.

    network: the class of the transformer.
    """
    if network == "LTX2VideoTransformer3DModel":
        return ltx2_name(name)
    return wan_name(name) if network == "WanTransformer3DModel" else name


def _tensor_name(network: str, name: str) -> str:
    name = name.removeprefix(next((p for p in PREFIXES if name.startswith(p)), ""))
    module, _, leaf = name.rpartition(".")
    whole = diffusers_name(network, name)
    return whole if whole != name else f"{diffusers_name(network, module)}.{leaf}".removeprefix(".")

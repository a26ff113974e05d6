"""LoRA: low-rank changes of a network's weights, read from the layouts that people share, and merged when a base is loaded.

A merged adapter costs nothing in a denoising step, and works on every base, offloaded and in fp8 as well, since it is in the
weights before anything else is done to them. `merge` hands back what it replaced, and `restore` puts it in again. The narrow
matrices of a GGUF can't be added to: there the low-rank product stands beside the layer, as peft has it, and is computed along.

Layouts that are read, always from safetensors: PEFT (`lora_A`, `lora_B`, with an adapter's name or without), diffusers
(`transformer.` before it), and those of ComfyUI and its trainers (`lora_down`, `lora_up`, `alpha`, `diff`, `diff_b`, over
`diffusion_model.` or `lora_unet_` and the names of Wan's own code; `diffusion_model.` and those of LTX-2's).
"""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from longshot.bases.single import diffusers_name, is_narrow
from longshot.document import read_text
from longshot.errors import UserError
from longshot.tensors import save_tensors

METADATA = "lora_adapter_metadata"  # where diffusers keeps the settings of an adapter, as JSON
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.", "model.")
_FACTOR = re.compile(
    r"(.+?)\.(lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)(?:\.[\w-]+)?\.(weight|bias)"
)
_WHOLE = re.compile(r"(.+)\.(alpha|diff|diff_b)")
_FLAT = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)")


@dataclass(frozen=True)
class Change:
    """What one adapter adds to one module: scale * up @ down and `whole` to its weight, `bias` to its bias; None adds nothing."""

    down: Float[Tensor, "rank *inputs"] | None = None
    up: Float[Tensor, "outputs rank *ones"] | None = None
    scale: float = 1.0
    whole: Tensor | None = None
    bias: Tensor | None = None

    def of_weight(self) -> Tensor | None:
        """The sum in fp32, in the shape of the module's weight."""
        total = None if self.whole is None else self.whole.float()
        if self.down is not None and self.up is not None:
            product = self.scale * self.up.float().flatten(1) @ self.down.float().flatten(1)
            product = product.reshape(len(self.up), *self.down.shape[1:])
            total = product if total is None else total + product
        return total


@dataclass(frozen=True)
class Adapter:
    """The changes of one LoRA, by module. name: what to call it in an error."""

    name: str
    changes: Mapping[str, Change] = field(default_factory=dict)


def parse(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:WEIGHT` as a path and a weight. Raises UserError for a weight that is no number."""
    path, colon, weight = text.rpartition(":")
    if not colon or not path or "/" in weight or "\\" in weight or weight.endswith(".safetensors"):
        return text, 1.0
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"--lora {text}: {weight!r} isn't a weight; write FILE:0.8")
    return path, number


# -- reading ------------------------------------------------------------------------------------------------------------
def read_adapter(place: str | Path) -> Adapter:
    """A LoRA file, a PEFT folder, or `owner/repository/file.safetensors` on the hub.

    Raises UserError for anything else, and for what isn't a LoRA of a transformer: nothing in a file is left out in silence.
    """
    path = _find(str(place))
    try:
        with safe_open(path, "pt") as file:
            meta = file.metadata() or {}
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a readable safetensors file ({error}); a LoRA loads from safetensors only"
        ) from error
    return Adapter(str(path), _changes(path, tensors, _settings(path, meta)))


def _find(place: str) -> Path:
    path = Path(place)
    if path.is_dir():
        found = sorted(path.glob("*.safetensors"))
        if len(found) != 1:
            raise UserError(f"{path}: holds {len(found)} safetensors files; name the one that is the LoRA")
        return found[0]
    if path.is_file():
        return path
    owner, _, rest = place.partition("/")
    repository, _, file = rest.partition("/")
    if not (owner and repository and file.endswith(".safetensors")) or owner.startswith((".", "~")):
        raise UserError(f"{place}: there is no such file")
    from huggingface_hub import errors as hub
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(f"{owner}/{repository}", file))
    except (hub.HfHubHTTPError, hub.LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise UserError(
            f"{place}: is no file here, and couldn't be fetched from the hub ({reason})"
        ) from error


def _settings(path: Path, meta: Mapping[str, str]) -> dict[str, Any]:
    """PEFT's own settings of an adapter, from the file's header or the `adapter_config.json` beside it."""
    beside = path.with_name("adapter_config.json")
    try:
        if METADATA in meta:
            found = {k.removeprefix("transformer."): v for k, v in json.loads(meta[METADATA]).items()}
        elif beside.is_file():
            found = json.loads(read_text(beside))
        else:
            return {}
        if not isinstance(found, dict):
            raise ValueError("no settings in it")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: its settings can't be read ({error})") from error
    if found.get("use_dora"):
        raise UserError(f"{path}: is a DoRA, which rescales weights besides adding to them; use a LoRA")
    return found


def _changes(path: Path, tensors: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Change]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if found := _FACTOR.fullmatch(key):
            module, factor, kind = found.groups()
            name = "down" if factor.endswith(("A", "down")) else "up"
            if kind == "bias":
                name = "diff_b" if name == "up" else "bias of lora_A"
        elif found := _WHOLE.fullmatch(key):
            module, name = found.groups()
        else:
            raise UserError(f"{path}: {key} isn't a part of a LoRA")
        parts.setdefault(_module_of(path, module), {})[name] = tensor
    if not parts:
        raise UserError(f"{path}: holds no tensors")
    return {module: _change(path, module, found, settings) for module, found in parts.items()}


def _module_of(path: Path, name: str) -> str:
    """The module a key is about, without what trainers write before it."""
    if name.startswith(("text_encoder", "lora_te", "transformer_2.")):
        raise UserError(
            f"{path}: changes {name.split('.')[0]}; longshot reads LoRAs of one transformer and nothing else"
        )
    if flat := _FLAT.fullmatch(name):
        return "blocks.{}.{}.{}".format(*flat.groups())
    while before := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(before)
    return name


def _change(path: Path, module: str, parts: dict[str, Tensor], settings: Mapping[str, Any]) -> Change:
    down, up = parts.get("down"), parts.get("up")
    if "bias of lora_A" in parts:
        raise UserError(f"{path}: {module} has a bias within its low-rank product, which can't be merged")
    if (down is None) != (up is None):
        raise UserError(f"{path}: {module} has one half of a low-rank product, and not the other")
    scale = 1.0
    if down is not None and up is not None:
        rank = len(down)
        if down.ndim < 2 or up.ndim < 2 or up.shape[1] != rank or up[0].numel() != rank or rank == 0:
            raise UserError(
                f"{path}: the halves of {module} don't fit: {list(down.shape)} and {list(up.shape)}"
            )
        root = math.sqrt(rank) if settings.get("use_rslora") else rank
        scale = float(parts["alpha"]) / rank if "alpha" in parts else _alpha(module, settings, rank) / root
    elif not parts.keys() & {"diff", "diff_b"}:
        raise UserError(f"{path}: {module} has a scale and nothing to scale")
    for tensor in parts.values():
        if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {module} holds numbers that aren't finite")
    return Change(down, up, scale, parts.get("diff"), parts.get("diff_b"))


def _alpha(module: str, settings: Mapping[str, Any], rank: int) -> float:
    for pattern, alpha in (settings.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(.*\.)?({pattern})", module):
            return float(alpha)
    alpha = settings.get("lora_alpha")
    if alpha is None:
        return math.sqrt(rank) if settings.get("use_rslora") else rank
    return float(alpha)


# -- merging ------------------------------------------------------------------------------------------------------------
class Beside(nn.Module):
    """A linear layer whose weights can't be added to, and what adapters add to its output: x W^T + b + (x A^T) B^T."""

    down: Tensor
    up: Tensor

    def __init__(self, linear: nn.Module, changes: Sequence[tuple[Change, float]], dtype: torch.dtype):
        super().__init__()
        self.linear = linear
        halves = [(c.down, c.up, weight * c.scale) for c, weight in changes]
        where = next(linear.parameters()).device
        downs = [down.float().flatten(1) for down, _, _ in halves if down is not None]
        ups = [scale * up.float().flatten(1) for _, up, scale in halves if up is not None]
        self.register_buffer("down", torch.cat(downs).to(where, dtype))
        self.register_buffer("up", torch.cat(ups, 1).to(where, dtype))

    def forward(self, input: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        added = F.linear(F.linear(input.to(self.down.dtype), self.down), self.up)
        return self.linear(input) + added.to(input.dtype)


@torch.no_grad()
def merge(
    network: nn.Module, adapters: Sequence[tuple[Adapter, float]], base: str
) -> dict[str, Tensor | nn.Module]:
    """Adds every adapter times its weight to a network; returns the tensors and layers that were replaced, for `restore`.

    The sum is made in fp32 and rounded once. base: its name, for errors. Raises UserError, and changes nothing, where an
    adapter was made for another base.
    """
    sums: dict[str, Tensor] = {}
    beside: dict[str, list[tuple[Change, float]]] = {}
    for adapter, weight in adapters:
        for module, change in adapter.changes.items():
            own, target = _target(network, module)
            if is_narrow(getattr(target, "weight", None)):
                if _fits_beside(target, adapter, module, change, base) and weight:
                    beside.setdefault(own, []).append((change, weight))
                change = Change(bias=change.bias)
            for name, delta in _deltas(own, target, adapter, module, change, base):
                if weight:
                    sums[name] = weight * delta + sums[name] if name in sums else weight * delta
    replaced: dict[str, Tensor | nn.Module] = {}
    for name, delta in sums.items():
        owner, _, leaf = name.rpartition(".")
        old = getattr(network.get_submodule(owner), leaf).data
        replaced[name] = old
        getattr(network.get_submodule(owner), leaf).data = (old.float() + delta.to(old.device)).to(old.dtype)
    for name, changes in beside.items():
        owner, _, leaf = name.rpartition(".")
        layer = replaced[name] = network.get_submodule(name)
        dtype = getattr(layer, "compute_dtype", None) or torch.float32
        setattr(network.get_submodule(owner), leaf, Beside(layer, changes, dtype))
    return replaced


@torch.no_grad()
def restore(network: nn.Module, replaced: Mapping[str, Tensor | nn.Module]) -> None:
    """Puts back what `merge` replaced, to the last bit."""
    for name, old in replaced.items():
        owner, _, leaf = name.rpartition(".")
        if isinstance(old, nn.Module):
            setattr(network.get_submodule(owner), leaf, old)
        else:
            getattr(network.get_submodule(owner), leaf).data = old


def _target(network: nn.Module, module: str) -> tuple[str, nn.Module]:
    """What a network calls the module that a change is about, and that module; an empty one where it has none."""
    own = _own_name(network, module)
    try:
        return own, network.get_submodule(own)
    except AttributeError:
        return own, nn.Module()


def _deltas(
    own: str, target: nn.Module, adapter: Adapter, module: str, change: Change, base: str
) -> Iterable[tuple[str, Tensor]]:
    """The parameters that a change is about, with what it adds to each."""
    for leaf, delta in (("weight", change.of_weight()), ("bias", change.bias)):
        if delta is None:
            continue
        parameter = getattr(target, leaf, None)
        if not isinstance(parameter, Tensor):
            raise UserError(
                f"{adapter.name}: is a LoRA of another base: it changes {module}.{leaf}, which {base} hasn't"
            )
        _check_shape(adapter, module, delta.shape, parameter.shape, base)
        if is_narrow(parameter):
            raise UserError(
                f"{adapter.name}: changes {module}.{leaf}, which this GGUF keeps narrow; use a safetensors file"
            )
        yield f"{own}.{leaf}", delta


def _fits_beside(target: nn.Module, adapter: Adapter, module: str, change: Change, base: str) -> bool:
    """Whether there is a low-rank product to stand beside a narrow layer. Raises UserError for what can't stand there."""
    if change.whole is not None:
        raise UserError(
            f"{adapter.name}: adds a whole matrix to {module}, and those of a GGUF can't be added to; use a safetensors file"
        )
    if change.down is None or change.up is None:
        return False
    wanted: Any = getattr(target.weight, "quant_shape")  # noqa: B009 - of diffusers' own kind of tensor
    _check_shape(adapter, module, (len(change.up), *change.down.shape[1:]), wanted, base)
    return True


def _check_shape(adapter: Adapter, module: str, its: Sequence[int], own: Sequence[int], base: str) -> None:
    if tuple(its) != tuple(own):
        raise UserError(
            f"{adapter.name}: is a LoRA of another base: its {module} is {_shape(its)}; that of {base} is {_shape(own)}"
        )


def _own_name(network: nn.Module, module: str) -> str:
    """What a network calls a module that a file may name as the family's own code does."""
    return diffusers_name(type(network).__name__, module)


def _shape(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


# -- making and writing -------------------------------------------------------------------------------------------------
@torch.no_grad()
def difference(name: str, before: nn.Module, after: nn.Module, rank: int) -> tuple[Adapter, float]:
    """The LoRA of a rank that is nearest to what a fine-tune did to a network's linear layers (by SVD), their biases whole.

    Other layers are left out. The number is the share of all that changed, in squares, which the LoRA gives back. Raises
    UserError for networks of other sizes, and for two that are the same.
    """
    changes, held = {}, 0.0
    tuned = dict(after.named_modules())
    for module, old in before.named_modules():
        if not isinstance(old, nn.Linear):
            continue
        new = tuned.get(module)
        if not isinstance(new, nn.Linear) or new.weight.shape != old.weight.shape:
            raise UserError(
                f"{name}: the two networks differ in {module}, so one isn't a fine-tune of the other"
            )
        u, s, v = torch.linalg.svd(new.weight.float() - old.weight.float(), full_matrices=False)
        root = s[:rank].sqrt()
        bias = None if old.bias is None else new.bias.float() - old.bias.float()
        changes[module] = Change(root[:, None] * v[:rank], u[:, :rank] * root, bias=bias)
        held += float(s[:rank].square().sum()) + (0.0 if bias is None else float(bias.square().sum()))
    pairs = zip(before.parameters(), after.parameters(), strict=True)
    total = sum(float((b.float() - a.float()).square().sum()) for a, b in pairs)
    if total == 0:
        raise UserError(f"{name}: the two networks are the same")
    return Adapter(name, changes), held / total


def save_adapter(path: Path, adapter: Adapter, dtype: torch.dtype = torch.bfloat16) -> None:
    """Writes an adapter in diffusers' layout, atomically. Its scales go into `lora_B`, so that alpha equals the rank."""
    tensors: dict[str, Tensor] = {}
    for module, change in adapter.changes.items():
        if change.whole is not None:
            raise UserError(
                f"{path}: {module} changes by more than a low-rank product, which this layout can't hold"
            )
        if change.down is not None and change.up is not None:
            tensors[f"transformer.{module}.lora_A.weight"] = change.down
            tensors[f"transformer.{module}.lora_B.weight"] = change.scale * change.up.float()
        if change.bias is not None:
            tensors[f"transformer.{module}.lora_B.bias"] = change.bias
    save_tensors(path, {k: v.to(dtype).contiguous() for k, v in tensors.items()}, {"format": "pt"})


def apply(
    network: nn.Module, orders: Sequence[tuple[str, float]], base: str
) -> dict[str, Tensor | nn.Module]:
    """Reads adapters, merges them into a network, and returns what `restore` needs. orders: places and weights."""
    return merge(network, [(read_adapter(place), weight) for place, weight in orders], base)


def load_adapters(base: Any, texts: Sequence[str]) -> None:
    """Merges LoRAs, each told as `FILE` or `FILE:WEIGHT`, into a base that was just loaded."""
    if texts and getattr(base, "second", None) is not None:
        raise UserError(
            f"--lora {texts[0]}: {base.spec.name} has two networks, and a LoRA is of one: leave it out"
        )
    apply(base.network, [parse(text) for text in texts], base.spec.name)

"""Weights that others published for films of several shots: where they lie, on what terms, and how they become ours.

`longshot convert` turns a published file into a folder with two files: `transformer.safetensors`, in diffusers' names, and
`longshot.json`, which says what it is and over which pipeline (whose VAE and text encoder it shares). `--base NAME` then opens
the folder in its usual place, `--base FOLDER` any other.

Most are published as pickles. Nothing else in longshot opens one; `convert` does, with torch's restricted unpickler, which makes
tensors and plain containers only, and only after that has been seen to refuse a probe.
"""

import hashlib
import io
import json
import pickle
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from longshot.bases.native import check_shapes
from longshot.bases.wan_names import converted
from longshot.document import read_text
from longshot.errors import UserError
from longshot.files import write_text
from longshot.tensors import save_tensors

if TYPE_CHECKING:
    from longshot.bases.base import Spec
    from longshot.bases.hub import Folder

RECORD, WEIGHTS, WEIGHTS_2 = "longshot.json", "transformer.safetensors", "transformer_2.safetensors"


@dataclass(frozen=True)
class Published:
    """One set of published weights.

    over: the base whose pipeline they belong into. hub: repository and file there. place: module, Spec and class that run
    them. terms: what is known of their licence; unless that is Apache-2.0, which asks for nothing on use, they are accepted
    once. key: the entry of the file that holds the network; "" for the file itself. second: the file of a second
    network, for little noise, where there is one.
    """

    name: str
    over: str
    hub: tuple[str, str]
    place: tuple[str, str, str]
    terms: str
    key: str = ""
    second: str = ""

    @property
    def spec(self) -> "Spec":
        return getattr(import_module(self.place[0]), self.place[1])

    @property
    def kind(self) -> Any:
        return getattr(import_module(self.place[0]), self.place[2])

    @property
    def licence(self) -> str:
        return self.spec.licence

    @property
    def is_open(self) -> bool:
        return self.licence == "Apache-2.0"


_LIST = (
    Published(
        name="longlive2",
        over="wan2.2-ti2v-5b",
        hub=("Efficient-Large-Model/LongLive-2.0-5B", "model_bf16.pt"),
        place=("longshot.bases.longlive", "LONGLIVE2", "LongLiveBase"),
        terms="https://github.com/NVlabs/LongLive/blob/main/LICENSE",
        key="generator",
    ),
    Published(
        name="shotstream",
        over="wan2.1-t2v-1.3b",
        hub=("KlingTeam/ShotStream", "shotstream_merged.pt"),
        place=("longshot.bases.shotstream", "SHOTSTREAM", "ShotStreamBase"),
        terms="its model card says Apache-2.0; its code has no licence file, and the network's bears CC-BY-NC-SA-4.0 (no "
        "commercial use): https://github.com/KlingAIResearch/ShotStream",
        key="generator",
    ),
    Published(
        name="echoshot",
        over="wan2.1-t2v-1.3b",
        hub=("JonneyWang/EchoShot", "EchoShot-1.3B-preview.pth"),
        place=("longshot.bases.echoshot", "ECHOSHOT", "EchoShotBase"),
        terms="its code comes without a licence, which gives no right to use it: ask its authors, "
        "https://github.com/D2I-ai/EchoShot",
    ),
    Published(
        name="holocine",
        over="wan2.1-t2v-14b",
        hub=("hlwang06/HoloCine", "full_high_noise.safetensors"),
        place=("longshot.bases.holocine", "HOLOCINE", "HoloCineBase"),
        terms="no commercial use, credit, and the same licence for what is made of them: "
        "https://creativecommons.org/licenses/by-nc-sa/4.0/",
        second="full_low_noise.safetensors",
    ),
)
PUBLISHED = {weights.name: weights for weights in _LIST}


def usual_folder(name: str) -> Path:
    """Where `longshot convert` puts weights unless told otherwise."""
    return Path.home() / ".local" / "share" / "longshot" / name


def is_published(name: str) -> bool:
    """Whether a name means published weights, by their own name or by the folder they were converted into."""
    return name in PUBLISHED or (Path(name) / RECORD).is_file()


def entry_of(name: str) -> tuple[Published, Path, str]:
    """(what it is, the folder of the converted weights, over which pipeline) of a name. UserError for a damaged record.

    The folder needn't be there for a name of the list.
    """
    folder = usual_folder(name) if name in PUBLISHED else Path(name)
    if name in PUBLISHED and not (folder / RECORD).is_file():
        return PUBLISHED[name], folder, PUBLISHED[name].over
    try:
        record = json.loads(read_text(folder / RECORD))
        entry, over = PUBLISHED[record["published"]], record["over"]
        if not isinstance(over, str):
            raise TypeError("over isn't a text")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder / RECORD}: damaged ({error!r}); make it again with `longshot convert`"
        ) from error
    return entry, folder, over


# -- terms --------------------------------------------------------------------------------------------------------------
def _accepted_file() -> Path:
    return Path.home() / ".config" / "longshot" / "accepted.json"


def accepted() -> dict[str, str]:
    """The names of the weights whose terms were accepted by this user, each with the terms as they were shown."""
    file = _accepted_file()
    try:
        found = json.loads(read_text(file)) if file.is_file() else {}
        return {str(name): str(terms) for name, terms in found.items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"{file}: damaged ({error}); remove it and accept again") from error


def accept(name: str) -> None:
    """Records, for this user, that the terms of some weights were accepted."""
    entry = PUBLISHED[name]
    write_text(_accepted_file(), json.dumps(accepted() | {name: entry.terms}, indent=1) + "\n")


def need_acceptance(entry: Published) -> None:
    """UserError where terms must be accepted first, or have changed since they were."""
    if not entry.is_open and accepted().get(entry.name) != entry.terms:
        raise UserError(
            f"{entry.name}: licence {entry.licence} ({entry.terms}). Whoever may use it says so once: `longshot accept "
            f"{entry.name}`"
        )


# -- published files ----------------------------------------------------------------------------------------------------
class _Probe:
    """What a restricted unpickler must refuse to make."""


@contextmanager
def _tensors_only() -> Generator[None]:
    """Inside, classes that other packages have let torch's restricted unpickler make are refused again."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        yield
    finally:
        torch.serialization.add_safe_globals(allowed)


def need_restricted_unpickler() -> None:
    """UserError unless this torch's `weights_only` refuses what it should: see the module's first lines."""
    kept = io.BytesIO()
    torch.save({"x": _Probe()}, kept)
    kept.seek(0)
    try:
        torch.load(kept, weights_only=True)
    except pickle.UnpicklingError:
        return
    raise UserError(
        f"torch {torch.__version__} unpickles anything: convert with torch 2.6 or newer, or have the file saved as safetensors"
    )


def read_state(file: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a published file. key: of a pickle, the entry that holds them; "" for the file itself.

    Raises UserError for a file that can't be read, and for one that holds anything else.
    """
    if not file.is_file():
        raise UserError(f"{file}: there is no such file")
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, "pt") as tensors:
                return {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: not a readable safetensors file ({error})") from error
    need_restricted_unpickler()
    try:
        with _tensors_only():
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line or "global" in line), "")
        because = f" ({reason.strip()[:200]})" if reason else ""
        raise UserError(f"{file}: holds more than weights, so it isn't opened{because}") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(
            f"{file}: not a readable file of weights ({str(error).splitlines()[0][:160]})"
        ) from error
    if key:
        if not isinstance(found, Mapping) or key not in found:
            raise UserError(f"{file}: has no entry {key!r}, under which these weights are published")
        found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in found.items()
    ):
        raise UserError(f"{file}: isn't a list of named tensors")
    return dict(found)


def _empty_network(folder: "Folder") -> Any:
    """The pipeline's transformer with shapes and no weights."""
    from accelerate import init_empty_weights
    from diffusers import WanTransformer3DModel

    with init_empty_weights(include_buffers=False):
        return WanTransformer3DModel.from_config(folder.config("transformer"))


def convert(entry: Published, file: Path, out: Path, over: str, second: Path | None = None) -> None:
    """Writes a published file as a folder that `load` opens, strictly. over: the pipeline it belongs into.

    second: the file for little noise, of weights that have one. Raises UserError.
    """
    from longshot.bases import place_of
    from longshot.bases.hub import need_diffusers, open_folder

    need_acceptance(entry)
    if entry.second and second is None:
        raise UserError(
            f"{entry.name}: has two networks: give {entry.hub[1]}, and {entry.second} with --second"
        )
    if second is not None and not entry.second:
        raise UserError(f"{entry.name}: has one network: leave --second out")
    need_diffusers(entry.name)
    folder = open_folder(place_of(over), weights=False, name=over)
    wanted = _empty_network(folder).state_dict()
    files = [(file, WEIGHTS)] + ([(second, WEIGHTS_2)] if second else [])
    for source, target in files:
        state = converted(read_state(source, entry.key), wanted, str(source))
        tensors = {name: tensor.contiguous() for name, tensor in state.items()}
        save_tensors(out / target, tensors, {"format": "pt"})
    over = str(Path(over).resolve()) if Path(over).is_dir() else over
    hashes = {source.name: _sha256(source) for source, _ in files}
    record = {"published": entry.name, "over": over, "licence": entry.licence, "files": hashes}
    write_text(out / RECORD, json.dumps(record, indent=1) + "\n")


def _sha256(file: Path) -> str:
    hasher = hashlib.sha256()
    with file.open("rb") as stream:
        while piece := stream.read(1 << 24):
            hasher.update(piece)
    return hasher.hexdigest()


# -- bases --------------------------------------------------------------------------------------------------------------
def spec_over(entry: Published, base: "Spec", name: str) -> "Spec":
    """The facts of published weights in a pipeline: what depends on the pipeline's sizes comes from there."""
    from dataclasses import replace

    return replace(entry.spec, name=name, stride=base.stride, channels=base.channels)


def load(name: str, dtype: torch.dtype) -> Any:
    """The base of a name. Raises UserError where it isn't here, or its terms weren't accepted."""
    from longshot.bases import place_of
    from longshot.bases.hub import need_diffusers, open_folder
    from longshot.bases.wan import spec_of

    entry, place, over = entry_of(name)
    need_acceptance(entry)
    need_diffusers(name)
    if not (place / WEIGHTS).is_file():
        (repository, files), other = entry.hub, ""
        if entry.second:
            files, other = f"{files} {entry.second}", " --second THE_OTHER"
        raise UserError(
            f"{name}: its weights aren't here yet: `hf download {repository} {files}`, then `longshot convert "
            f"{entry.name} THAT_FILE{other}`"
        )
    folder = open_folder(place_of(over), name=over, without="transformer")
    more = {"second": _network(folder, place / WEIGHTS_2, dtype)} if entry.second else {}
    spec = spec_over(entry, spec_of(folder), entry.name)
    return entry.kind.load(folder, dtype, network=_network(folder, place / WEIGHTS, dtype), spec=spec, **more)


def _network(folder: "Folder", weights: Path, dtype: torch.dtype) -> Any:
    """The pipeline's transformer with converted weights, strictly."""
    network = _empty_network(folder)
    try:
        with safe_open(weights, "pt") as file:
            state = {key: file.get_tensor(key).to(dtype) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{weights}: damaged ({error}); make it again with `longshot convert`") from error
    check_shapes(weights, network.state_dict(), state)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)

"""From a name to a folder on this machine: a local diffusers folder, or a repository through the ordinary hub client.

The client brings its own cache, token, resume and offline switch; nothing is added to them. Weights come as safetensors: no
other kind is fetched, and none is opened.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from longshot.bases.base import Spec
from longshot.document import read_text
from longshot.errors import UserError
from longshot.lint import Limits
from longshot.tensors import stored

INDEX = "model_index.json"
_CONFIGS = ["*.json", "*.txt", "*.model", "*.jinja"]
# Not those beside the index: LTX-2's repository has the same weights there again, as single files.
_WEIGHTS = ["*/*.safetensors"]


@dataclass(frozen=True)
class Folder:
    """A diffusers pipeline on disk. name: what the person called it. transformer: a file with the transformer's weights, in the
    place of those in the folder."""

    path: Path
    name: str
    transformer: Path | None = None

    def config(self, part: str) -> dict:
        """The config of a part, such as `transformer`; of the pipeline itself for "". UserError where it can't be read."""
        names = {"": INDEX, "scheduler": "scheduler/scheduler_config.json"}
        file = self.path / names.get(part, f"{part}/config.json")
        if not file.is_file():
            raise UserError(
                f"{self.path}: has no {file.relative_to(self.path)}, so it isn't a whole pipeline"
            )
        try:
            config = json.loads(read_text(file))
        except ValueError as error:
            raise UserError(f"{file}: isn't valid JSON ({error})") from error
        if not isinstance(config, dict):
            raise UserError(f"{file}: isn't a config: it holds no names")
        return config

    @property
    def pipeline(self) -> str:
        """The diffusers class that the folder says it is."""
        return str(self.config("").get("_class_name", "nothing"))


def need_diffusers(name: str) -> None:
    """UserError where the packages that pretrained bases run through aren't installed."""
    if any(find_spec(package) is None for package in ("diffusers", "transformers", "accelerate")):
        raise UserError(f"{name}: pretrained bases need more packages: pip install 'longshot[bases]'")


def open_folder(place: str, weights: bool = True, name: str = "", without: str = "") -> Folder:
    """The folder of a base: a path, or `owner/repository` with `@revision` after it where one is pinned.

    name: what the person called it, if by another name. weights: False fetches only configs and tokenizers. without: a part
    whose weights aren't fetched. Raises UserError, in one line, where there is no such folder or repository, where it is gated,
    and where the hub can't be reached and nothing is cached.
    """
    name, path = name or place, Path(place)
    if path.is_dir():
        if not (path / INDEX).is_file():
            raise UserError(
                f"{name}: isn't a diffusers pipeline: there is no {INDEX} in it. Name the folder that holds it (beside "
                "transformer/, vae/ and text_encoder/)"
            )
        return Folder(path, path.resolve().name)
    repository, _, revision = place.partition("@")
    if repository.count("/") != 1 or repository.startswith((".", "/", "~")) or " " in repository:
        raise UserError(
            f"no base {name!r}: use tiny, or a .safetensors file that `longshot train` wrote, a name that `longshot bases` "
            "lists, a diffusers folder, or owner/repository"
        )
    patterns = [*_CONFIGS, *(_WEIGHTS if weights else ())]
    short = name.partition("@")[0].rsplit("/")[-1]
    return Folder(
        _snapshot(repository, revision or None, patterns, [f"{without}/*.safetensors"] if without else []),
        short,
    )


def _snapshot(
    repository: str, revision: str | None, patterns: list[str], skipped: Sequence[str] = ()
) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(
                repository, revision=revision, allow_patterns=patterns, ignore_patterns=list(skipped) or None
            )
        )
    except hub.GatedRepoError:
        problem = f"is gated: accept its licence at https://huggingface.co/{repository}, then `hf auth login`"
    except hub.RevisionNotFoundError:
        problem = f"has no revision {revision}"
    except hub.RepositoryNotFoundError:
        problem = "isn't on the hub, or is private: check the name, or `hf auth login`"
    except hub.LocalEntryNotFoundError:
        problem = (
            "can't be reached (no network, or offline mode) and isn't cached here: fetch it where there is a network with "
            f"`hf download {repository}`, or give the path of a folder that holds it"
        )
    except (hub.HfHubHTTPError, OSError, ValueError) as error:
        problem = f"couldn't be fetched ({str(error).splitlines()[0][:160]})"
    raise UserError(f"{repository}{at} {problem}")


def load_part(cls: Any, folder: Folder, part: str, **options: Any) -> Any:
    """A model of a pipeline, strictly: every weight there, of the right shape, and none besides.

    diffusers and transformers only warn and fill in random weights. Raises UserError with the first tensor that doesn't fit.
    """
    if part == "transformer" and folder.transformer is not None:
        from longshot.bases.single import load_single

        quiet = _Quiet()
        with quiet:
            return load_single(
                cls, folder.transformer, folder.path, options.get("torch_dtype", torch.float32)
            )
    where = f"{folder.path}/{part}"
    if not (folder.path / part).is_dir():
        raise UserError(f"{folder.path}: has no {part}/, so it isn't a whole pipeline")
    quiet = _Quiet()
    try:
        with quiet:
            model, info = cls.from_pretrained(
                folder.path, subfolder=part, use_safetensors=True, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise UserError(f"{where}: can't be loaded ({_first_line(error)})") from error
    _check_tensors(where, info, getattr(model, "_tied_weights_keys", None) or ())
    return model.eval().requires_grad_(False)


_READERS = ("text_encoder", "connectors")  # what stands between a prompt and the transformer


def load_parts(folder: Folder, dtype: torch.dtype, read_text: bool = True, **classes: Any) -> dict[str, Any]:
    """The networks of a pipeline, and a tokenizer for each text encoder, as diffusers' pipelines take them: by part.

    classes: of each network. The VAE is kept in fp32: in bf16 it loses colour. read_text: False leaves None where a prompt would
    be read, for training on stored features. Raises UserError, see `load_part`.
    """
    parts: dict[str, Any] = {}
    for part, cls in classes.items():
        if part.startswith(_READERS) and not read_text:
            parts[part] = None
            continue
        kind = "dtype" if cls.__module__.startswith("transformers.") else "torch_dtype"
        parts[part] = load_part(cls, folder, part, **{kind: torch.float32 if part == "vae" else dtype})
    for part in classes:
        if part.startswith("text_encoder"):
            name = part.replace("text_encoder", "tokenizer")
            parts[name] = load_tokenizer(folder, name)
    return parts


def text_identity(folder: Folder) -> str:
    """A hash of what reads a pipeline's prompts, without loading it: its tokenizers' files, its encoders' configs, and the name,
    dtype, shape, and first and last rows of each of their tensors. Raises UserError where a file can't be read."""
    from safetensors import SafetensorError, safe_open

    hasher = hashlib.sha256()
    parts = sorted(part for part in folder.config("") if part.startswith((*_READERS, "tokenizer")))
    for place in (folder.path / part for part in parts if (folder.path / part).is_dir()):
        for file in sorted(place.iterdir()):
            if file.suffix in (".txt", ".model", ".jinja") or file.name in _OF_TOKENS:
                hasher.update(f"{place.name} {file.name} ".encode() + file.read_bytes())
        if not place.name.startswith(_READERS):
            continue
        about = {k: v for k, v in folder.config(place.name).items() if k not in _OF_SAVING and k[0] != "_"}
        hasher.update(json.dumps(about, sort_keys=True).encode())
        found: dict[str, bytes] = {}
        for file in place.glob("*.safetensors"):
            try:
                with safe_open(file, "pt") as tensors:
                    found |= {name: _ends(tensors.get_slice(name)) for name in tensors.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise UserError(f"{file}: not a readable safetensors file ({error})") from error
        hasher.update(b"".join(name.encode() + found[name] for name in sorted(found)))
    return hasher.hexdigest()[:24]


_OF_TOKENS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_OF_SAVING = ("transformers_version", "dtype", "torch_dtype", "architectures")  # not of what a network does


def _ends(tensor: Any) -> bytes:
    """What a tensor in a file is: dtype, shape, and its first and last rows."""
    shape = tensor.get_shape()
    rows = torch.cat([tensor[:1], tensor[-1:]]) if shape and shape[0] else torch.zeros(0)
    return f"{tensor.get_dtype()}{shape}".encode() + rows.contiguous().view(torch.uint8).numpy().tobytes()


def _check_tensors(where: str, info: Mapping[str, Any], tied: Any) -> None:
    mismatched = [m[0] if isinstance(m, tuple | list) else m for m in info.get("mismatched_keys") or ()]
    found: list[tuple[str, Callable[[str], str]]] = [
        ("missing_keys", lambda key: f"the tensor {key} is missing"),
        ("unexpected_keys", lambda key: f"the tensor {key} belongs to another network"),
    ]
    if mismatched:
        raise UserError(f"{where}: the tensor {mismatched[0]} has another shape than its config says")
    for kind, words in found:
        keys = sorted(k for k in info.get(kind) or () if k not in tied)
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise UserError(f"{where}: {words(keys[0])}{more}; fetch the weights again")
    if info.get("error_msgs"):
        raise UserError(f"{where}: can't be loaded ({str(info['error_msgs'][0]).strip()})")


def load_tokenizer(folder: Folder, part: str) -> Any:
    """A pipeline's tokenizer. No code that lies beside it is run."""
    from transformers import AutoTokenizer

    if not (folder.path / part).is_dir():
        raise UserError(f"{folder.path}: has no {part}/, so it isn't a whole pipeline")
    try:
        return AutoTokenizer.from_pretrained(folder.path, subfolder=part, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds, tokenizers plain Exception
        raise UserError(f"{folder.path}/{part}: can't be loaded ({_first_line(error)})") from error


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__


class _Quiet:
    """diffusers' and transformers' own warnings and bars are off while their findings are read and told as errors."""

    def __enter__(self) -> None:
        from diffusers.utils import logging as diffusers_log
        from transformers.utils import logging as transformers_log

        self.logs = [(log, log.get_verbosity()) for log in (diffusers_log, transformers_log)]
        for log, _ in self.logs:
            log.set_verbosity_error()
            log.disable_progress_bar()

    def __exit__(self, *_) -> None:
        for log, level in self.logs:
            log.set_verbosity(level)


def limits_of(spec: Spec, count_tokens: Callable[[str], int]) -> Limits:
    """What `lint` needs to know about a base that knows all words."""
    return Limits(
        name=spec.name,
        fps=spec.fps,
        frame_step=spec.frame_step,
        frame_offset=spec.first_frames,
        max_frames=spec.max_frames,
        default_frames=spec.default_frames,
        max_text_tokens=spec.max_text_tokens,
        count_tokens=count_tokens,
    )


def fingerprint(*networks: torch.nn.Module) -> str:
    """A hash of the weights: of every tensor its name, shape, first bytes, and the sum of its bits.

    Not of every byte, since a pretrained base has tens of gigabytes of them.
    """
    hasher = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            for weight in stored(tensor):
                raw = weight.detach().contiguous().flatten().view(torch.uint8)
                words = raw[: len(raw) // 4 * 4].view(torch.int32)
                total = int(words.sum(dtype=torch.int64)) if len(words) else 0
                first = raw[:64].cpu().numpy().tobytes()
                hasher.update(f"{name} {tuple(weight.shape)} {weight.dtype} {total} ".encode() + first)
    return hasher.hexdigest()[:24]

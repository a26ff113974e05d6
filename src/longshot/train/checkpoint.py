"""Training state on disk: one safetensors file that is either whole or not there, never a pickle."""

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from longshot.errors import UserError
from longshot.tensors import save_tensors

FORMAT = "longshot-training-1"


@dataclass
class TrainingState:
    """Everything a run needs to go on, bit for bit: noise and data are functions of (seed, step), so no RNG is stored."""

    step: int
    config: dict
    weights: dict[str, Tensor]
    average: dict[str, Tensor]
    optimizer: dict

    def save(self, path: Path) -> None:
        """Writes the state, atomically."""
        tensors: dict[str, Tensor] = {}
        for name, group in (("weights", self.weights), ("average", self.average)):
            tensors |= {f"{name}/{k}": v.detach().clone().contiguous() for k, v in group.items()}
        scalars: dict[str, dict] = {}
        for index, entries in self.optimizer["state"].items():
            for key, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value.detach().clone().contiguous()
                else:
                    scalars.setdefault(str(index), {})[key] = value
        meta = {
            "format": FORMAT,
            "step": str(self.step),
            "config": json.dumps(self.config),
            "optimizer": json.dumps({"param_groups": self.optimizer["param_groups"], "scalars": scalars}),
        }
        save_tensors(path, tensors, meta)

    @classmethod
    def load(cls, path: Path) -> "TrainingState":
        """Reads what `save` wrote. Raises UserError for any other file."""
        try:
            with safe_open(path, "pt") as file:
                meta = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable training checkpoint ({error})") from error
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: a safetensors file, but not a training checkpoint")
        try:
            return cls._assembled(meta, tensors)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}: a training checkpoint with parts missing or wrong ({error!r})"
            ) from error

    @classmethod
    def _assembled(cls, meta: dict[str, str], tensors: dict[str, Tensor]) -> "TrainingState":
        groups: dict[str, dict[str, Tensor]] = {"weights": {}, "average": {}}
        plain = json.loads(meta["optimizer"])
        entries: dict[int, dict] = {int(index): dict(values) for index, values in plain["scalars"].items()}
        for key, value in tensors.items():
            kind, rest = key.split("/", 1)
            if kind == "optimizer":
                index, entry = rest.split("/")
                entries.setdefault(int(index), {})[entry] = value
            else:
                groups[kind][rest] = value
        optimizer = {"state": entries, "param_groups": plain["param_groups"]}
        return cls(
            int(meta["step"]), json.loads(meta["config"]), groups["weights"], groups["average"], optimizer
        )

"""Shards: scenes ready for training, in tar files that `tar`, WebDataset and longshot read, and an index to reach any of them.

A folder of shards holds `shard-000000.tar`, beside each tar its index `shard-000000.jsonl`, and `shards.json`, which lists them
and says which base they were made for. A scene is two members of a tar: `KEY.json`, all that is known of it (prompts, sources,
licences), and `KEY.safetensors`, its latents and text features. The index says where in the tar they lie and how long every text
and video is, so that a training job reads a scene with two reads and can plan an epoch without opening a tar.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from safetensors import SafetensorError

from longshot.data.latents import LatentScene
from longshot.data.records import Record, Row
from longshot.data.stage import Made, Place, Settings, Stage, Unit
from longshot.errors import UserError
from longshot.files import atomic_path, inside, write_text

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "longshot-shards-1"
MANIFEST = "shards.json"
RECORD, TENSORS = "json", "safetensors"
_KEY = re.compile(r"[A-Za-z0-9_-]{1,200}")
_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Sample:
    """One scene of a shard: its record, and its tensors by name."""

    key: str
    record: dict[str, Any]
    tensors: "dict[str, Tensor]"


@dataclass(frozen=True)
class Entry:
    """Where a scene lies in a tar, and what it is worth in tokens.

    record, tensors: (offset, size) in bytes. text, video: tokens of each group, the global prompt first (0 where there is none).
    """

    key: str
    record: tuple[int, int]
    tensors: tuple[int, int]
    text: tuple[int, ...]
    video: tuple[int, ...]

    @property
    def tokens(self) -> int:
        """All its tokens; the global prompt's dummy video counts as one."""
        return sum(self.text) + sum(self.video)


@dataclass(frozen=True)
class Shard:
    """A tar of a folder of shards, as `shards.json` lists it."""

    name: str
    scenes: int
    bytes: int
    sha256: str


# -- writing ------------------------------------------------------------------------------------------------------------
def write_shards(
    samples: Iterable[Sample], folder: Path, base: Mapping[str, Any], max_bytes: int = 2**28
) -> list[Shard]:
    """Writes samples, in their order, into tars of at most `max_bytes` (or of one sample that is larger), and the manifest last.

    The same samples give the same bytes. base: facts of the base that the latents are for. An older set in the folder is
    replaced; while that goes on there is no manifest, so nobody reads half of each. Raises UserError for a key that can't be a
    file name or comes twice.
    """
    from safetensors.torch import save

    folder = Path(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    dumped = (
        (s.key, dump_record(s.record), save({name: t.contiguous() for name, t in sorted(s.tensors.items())}))
        for s in samples
    )
    numbered = groupby(_numbered(dumped, max_bytes), key=lambda item: item[0])
    shards = [write_shard(folder / shard_name(n), (parts for _, parts in group)) for n, group in numbered]
    write_manifest(folder, shards, base)
    return shards


def shard_name(number: int) -> str:
    return f"shard-{number:06d}.tar"


def dump_record(record: Mapping[str, Any]) -> bytes:
    """Returns a record as JSON that a person can read."""
    return (json.dumps(record, ensure_ascii=False, sort_keys=True, indent=1) + "\n").encode()


Parts = tuple[str, bytes, bytes]
"""A scene as it lies in a tar: its key, record and tensors."""


def _numbered(scenes: Iterable[Parts], max_bytes: int) -> Iterator[tuple[int, Parts]]:
    """Every scene with the number of its shard."""
    number, size = 0, 0
    seen: set[str] = set()
    for key, record, tensors in scenes:
        if key in seen:
            raise UserError(f"scene {key}: comes twice; a scene is in the shards once")
        seen.add(key)
        own = tar_bytes(len(record)) + tar_bytes(len(tensors))
        if size and size + own > max_bytes:
            number, size = number + 1, 0
        size += own
        yield number, (key, record, tensors)


def tar_bytes(size: int) -> int:
    """Returns how much a member of so many bytes takes in a tar."""
    return _BLOCK + -(-size // _BLOCK) * _BLOCK


def write_shard(path: Path, scenes: Iterable[Parts]) -> Shard:
    """Writes one tar and the index beside it, holding one scene at a time."""
    with atomic_path(path) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, *parts in scenes:
                if not _KEY.fullmatch(key):
                    raise UserError(f"scene {key!r}: a key in a shard is letters, digits, - and _ only")
                for ending, content in zip((RECORD, TENSORS), parts, strict=True):
                    member = tarfile.TarInfo(f"{key}.{ending}")  # time and owner stay 0: same bytes
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        with temporary.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
        size = temporary.stat().st_size
    entries = scan(path)
    write_text(path.with_suffix(".jsonl"), "".join(json.dumps(asdict(e)) + "\n" for e in entries))
    return Shard(path.name, len(entries), size, digest)


def write_manifest(folder: Path, shards: Sequence[Shard], base: Mapping[str, Any]) -> None:
    """Writes the manifest of tars that lie in a folder, then removes those of an older and longer set."""
    manifest = {"format": FORMAT, "base": dict(base), "shards": [asdict(shard) for shard in shards]}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    names = {shard.name for shard in shards}
    for path in sorted(folder.glob("shard-*.tar")):
        if path.name not in names:
            path.with_suffix(".jsonl").unlink(missing_ok=True)
            path.unlink()


# -- reading ------------------------------------------------------------------------------------------------------------
def scan(path: Path) -> list[Entry]:
    """The index of a tar, from the tar itself. Raises UserError when it isn't a whole shard."""
    places: dict[str, dict[str, tuple[int, int]]] = {}
    records: dict[str, Any] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, ending = member.name.partition(".")
                if not member.isfile() or not _KEY.fullmatch(key) or ending not in (RECORD, TENSORS):
                    raise UserError(f"{path}: holds {member.name!r}, which belongs to no scene")
                places.setdefault(key, {})[ending] = (member.offset_data, member.size)
                if ending == RECORD:
                    opened = tar.extractfile(member)
                    records[key] = json.loads(opened.read() if opened else b"")
        return [
            Entry(key, place[RECORD], place[TENSORS], *_lengths(records[key]))
            for key, place in places.items()
        ]
    except (tarfile.TarError, OSError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: is not a whole shard ({error})") from error


def _lengths(record: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    groups = record["groups"]
    video = tuple(int(t * h * w) for t, h, w in (group["grid"] for group in groups))
    return tuple(int(group["text"]) for group in groups), video


class ShardDataset:
    """The scenes of a folder of shards, each reached by its number: `dataset[i]` is a `Sample`.

    Scenes are numbered shard by shard in the order of the manifest. Reading is by offset (pread), so it can be shared by
    threads and by forked or spawned workers. Raises UserError, naming the file, for whatever isn't a whole set of shards.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = Path(folder)
        manifest = read_manifest(self.folder)
        self.base: dict[str, Any] = manifest["base"]
        self.entries: list[Entry] = []
        self.places: list[Path] = []
        for shard in manifest["shards"]:
            path = inside(self.folder, shard.name)
            entries = _read_index(path, shard)
            self.entries += entries
            self.places += [path] * len(entries)
        self._opened: dict[Path, int] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> Sample:
        from safetensors.torch import load

        entry, path = self.entries[number], self.places[number]
        try:
            record = json.loads(self._read(path, entry, entry.record))
            tensors = load(self._read(path, entry, entry.tensors))
        except (SafetensorError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: scene {entry.key} can't be read ({error})") from error
        return Sample(entry.key, record, tensors)

    def fingerprint(self) -> str:
        """A hash of every scene's place and content, the same for a copy elsewhere."""
        shards = read_manifest(self.folder)["shards"]
        return hashlib.sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest()[:24]

    def _read(self, path: Path, entry: Entry, place: tuple[int, int]) -> bytes:
        if path not in self._opened:
            try:
                self._opened[path] = os.open(path, os.O_RDONLY)
            except OSError as error:
                raise UserError(f"{path}: can't be opened ({error.strerror})") from error
        offset, size = place
        content = os.pread(self._opened[path], size, offset)
        if len(content) < size:
            raise UserError(f"{path}: ends before scene {entry.key} does; copy the shard again")
        return content

    def close(self) -> None:
        for handle in self._opened.values():
            os.close(handle)
        self._opened.clear()

    def __del__(self):
        self.close() if hasattr(self, "_opened") else None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": {}}


def read_manifest(folder: Path) -> dict[str, Any]:
    """`shards.json` with its list as `Shard`s. Raises UserError when there is none, or it isn't one."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"{path}: is of format {manifest['format']!r}, not {FORMAT}")
        return manifest | {"shards": [Shard(**shard) for shard in manifest["shards"]]}
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}); is this a folder of shards?") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: isn't a list of shards ({error!r})") from error


def _read_index(path: Path, shard: Shard) -> list[Entry]:
    index = path.with_suffix(".jsonl")
    try:
        if path.stat().st_size != shard.bytes:
            raise UserError(
                f"{path}: has {path.stat().st_size} bytes, not {shard.bytes}; copy the shard again"
            )
        entries = [_entry(json.loads(line)) for line in index.read_text("utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{error.filename}: can't be read ({error.strerror})") from error
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{index}: isn't the index of a shard ({error!r})") from error
    if len(entries) != shard.scenes:
        raise UserError(f"{index}: lists {len(entries)} scenes; {path.name} holds {shard.scenes}")
    return entries


def _entry(row: Mapping[str, Any]) -> Entry:
    (record_at, record_size), (tensors_at, tensors_size) = row["record"], row["tensors"]
    return Entry(
        str(row["key"]),
        (int(record_at), int(record_size)),
        (int(tensors_at), int(tensors_size)),
        tuple(int(n) for n in row["text"]),
        tuple(int(n) for n in row["video"]),
    )


# -- the stage ----------------------------------------------------------------------------------------------------------
class ShardSettings(Settings):
    """How large a tar is."""

    max_mb: float = Field(default=256, gt=0)
    """of a tar, in MiB; one scene that is larger has a tar of its own"""


class ShardRow(Record):
    """A tar, and the scenes in it."""

    file: str
    scenes: tuple[str, ...]
    bytes: int
    sha256: str
    base: dict[str, Any]


@dataclass(frozen=True)
class Shards(Stage):
    """Scenes with latents in, tars out; at the end they lie numbered beside their manifest, ready for training."""

    name: ClassVar[str] = "shards"
    after: ClassVar[str | None] = "latents"
    version: ClassVar[int] = 1
    reads: ClassVar[type[Record]] = LatentScene
    writes: ClassVar[type[Record]] = ShardRow
    settings: ShardSettings
    place: Place

    def units(self, rows: Iterable[Row]) -> Iterator[Unit]:
        """Yield a unit a tar: neighbours in the order of the scenes, up to the size of a tar."""
        group: list[Row] = []
        size, number = 0, 0
        for row in rows:
            own = tar_bytes(row["bytes"]) + tar_bytes(len(dump_record(record_of(LatentScene.of(row)))))
            if group and size + own > self.settings.max_mb * 2**20:
                yield Unit(f"shard {number}", tuple(group))
                group, size, number = [], 0, number + 1
            group.append(row)
            size += own
        if group:
            yield Unit(f"shard {number}", tuple(group))

    def files(self, row: Row) -> Iterable[str]:
        return [row["file"], str(Path(row["file"]).with_suffix(".jsonl"))]

    def run(self, unit: Unit, key: str) -> Made:
        scenes = [LatentScene.of(row, unit.name) for row in unit.rows]
        path = self.place.folder(self.name) / "files" / key[:2] / key / "scenes.tar"
        shard = write_shard(path, ((s.id, dump_record(record_of(s)), self._tensors(s)) for s in scenes))
        row = ShardRow(
            file=path.relative_to(self.place.out).as_posix(),
            scenes=tuple(s.id for s in scenes),
            bytes=shard.bytes,
            sha256=shard.sha256,
            base=scenes[0].base_facts,
        )
        return Made([row])

    def _tensors(self, scene: LatentScene) -> bytes:
        path = self.place.file(scene.file)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(
                f"{path}: can't be read ({error.strerror}); run the stage latents again"
            ) from error
        if len(content) != scene.bytes:
            raise UserError(
                f"{path}: has {len(content)} bytes, not {scene.bytes}; run the stage latents again"
            )
        return content

    def settle(self, rows: Iterator[Row]) -> Iterator[Row]:
        """Give the tars their numbers, and write the manifest."""
        folder = self.place.folder(self.name)
        (folder / MANIFEST).unlink(missing_ok=True)
        shards, base = [], {}
        for number, row in enumerate(rows):
            made = ShardRow.of(row)
            path, base = folder / shard_name(number), made.base
            for ending in (".tar", ".jsonl"):
                _linked(self.place.file(made.file).with_suffix(ending), path.with_suffix(ending))
            shards.append(Shard(path.name, len(made.scenes), made.bytes, made.sha256))
            yield row
        write_manifest(folder, shards, base)


def _linked(source: Path, path: Path) -> None:
    """The same file under another name; a copy where the file system has no links."""
    if path.exists() and path.samefile(
        source
    ):  # renaming one name of a file to another of its names does nothing
        return
    with atomic_path(path) as temporary:
        temporary.unlink()
        try:
            os.link(source, temporary)
        except OSError:
            shutil.copyfile(source, temporary)


def record_of(scene: LatentScene) -> dict[str, Any]:
    """Returns what of a scene goes into the shard beside its tensors: words, sizes, and where everything comes from."""
    shots = [
        {
            "id": shot.id,
            "film_frames": [shot.start_frame, shot.stop_frame],
            "film_seconds": [shot.start_s, shot.stop_s],
            "film_fps": shot.fps,
            "crop": shot.crop,
            "begins": shot.begins,
            "scores": shot.scores,
            **clip.row(),
        }
        for shot, clip in zip(scene.kept_shots, scene.clips, strict=True)
    ]
    return {
        "id": scene.id,
        "kind": scene.kind,
        "film": scene.film.row(),
        "caption": scene.caption.row(),
        "caption_model": scene.caption_model,
        "base": scene.base_facts,
        "scores": scene.scores,
        "global_prompt": scene.global_prompt,
        "groups": [group.row() for group in scene.groups],
        "shots": shots,
    }

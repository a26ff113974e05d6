"""The rows that travel through the stages. JSON objects on disk; what a row says of its film goes with it to the shard."""

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from longshot.errors import UserError

Row = dict[str, Any]
"""A row as it lies on disk and travels between processes: plain JSON values."""

R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """A row that was checked. Unknown fields are refused: a stage reads what it knows."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def row(self) -> Row:
        """Return the record as plain JSON values."""
        return self.model_dump(mode="json")

    @classmethod
    def of(cls: type[R], row: Mapping[str, Any], where: str = "") -> R:
        """Return the record that a row holds; UserError when it isn't one."""
        try:
            return cls.model_validate(row)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or "row"
            raise UserError(
                f"{where or 'a row'}: {field}: {first['msg']}; was it written by another version? Run the stage again"
            ) from error


class Origin(Record):
    """Where pictures come from: it stays with every row, from the film to the shard."""

    path: str
    """of the film, relative to the folder of films (`films_root`), with forward slashes"""
    sha256: str
    """of the whole file"""
    source: str = ""
    """an address or a name, as the config says"""
    licence: str = ""


class FilmRow(Record):
    """A film that can be read (stage `probe`). Sizes are as shown: turned upright, with square pixels."""

    film: Origin
    bytes: int
    width: int
    height: int
    fps: str
    """mean frames a second, an exact fraction"""
    frames: int
    """frames in the file's index; a broken film has fewer that can be decoded"""
    seconds: float
    variable_rate: bool = False
    rotation: int = 0
    """degrees by which the stored pictures are turned"""
    bits: int = 8
    """of a colour"""
    codec: str = ""
    audio: bool = False
    broken: str | None = None
    """what is wrong with its end; what comes before is used, and the report says so"""


class Sample(Record):
    """One looked-at frame of a shot, about every second, with what was measured since the sample before."""

    frame: int
    second: float
    luma: float
    """mean brightness, 0 to 1"""
    spread: float
    """standard deviation of the brightness, 0 to 1"""
    change: float = 0.0
    """mean change from frame to frame, 0 to 1, over the frames up to this sample"""
    still: float = 0.0
    """share of those frames that equal the one before"""
    shake: float = 0.0
    """mean jerk of the camera, in frame widths a frame: how much its motion changes from frame to frame"""
    text: float = 0.0
    """share of the picture that looks like written text"""
    sharp: float = 0.0
    """mean strength of edges, 0 to 1"""
    hash: str = ""
    """perceptual hash, 16 hex digits"""


class Span(Record):
    """Frames of one film, half-open, counted from 0 in the order in which they are shown."""

    id: str
    film: Origin
    fps: str
    start_frame: int = Field(ge=0)
    stop_frame: int
    start_s: float
    stop_s: float
    """seconds from the film's first frame"""

    @property
    def frames(self) -> int:
        return self.stop_frame - self.start_frame

    @property
    def seconds(self) -> float:
        return self.stop_s - self.start_s


Begin = Literal["film", "cut", "fade", "dissolve", "event"]
"""How a shot begins: with the film, after a hard cut, a fade through black, a dissolve; or at an event inside a take."""


class ShotRow(Span):
    """One continuous take (stage `shots`). Every frame of a film is in exactly one."""

    index: int
    begins: Begin
    width: int
    height: int
    crop: tuple[int, int, int, int] | None = None
    """left, top, width, height of the picture inside a letterbox, in pixels as shown; None is the whole"""
    strips: tuple[str, ...] = ()
    """pictures with samples side by side, tile_width pixels each; relative to the folder of the run"""
    tile_width: int = 0
    tiles: int = 0
    """pictures in all the strips together"""
    first_tile: int = 0
    """samples in the strips before the first of this shot, where it is a part of a take"""
    samples: tuple[Sample, ...] = ()


class SceneShot(ShotRow):
    """A shot as part of a scene."""

    cut: bool
    """whether it begins with a real cut in the film; False continues the shot before it"""
    scores: dict[str, float] = {}
    kept: bool = True
    reasons: tuple[str, ...] = ()
    """why it is left out, a filter's name each"""


class SceneRow(Record):
    """A scene (stages `scenes` and `filter`): adjacent shots of one place and cast, or one take split at its events."""

    id: str
    film: Origin
    kind: Literal["cuts", "take"]
    shots: tuple[SceneShot, ...]
    similarity: float | None = None
    """mean similarity of linked shots, -1 to 1"""
    scores: dict[str, float] = {}
    kept: bool = True
    reasons: tuple[str, ...] = ()
    duplicate_of: str | None = None
    """the scene seen before that shows the same"""

    @property
    def kept_shots(self) -> tuple[SceneShot, ...]:
        return tuple(shot for shot in self.shots if shot.kept)

    @property
    def seconds(self) -> float:
        return sum(shot.seconds for shot in self.kept_shots)

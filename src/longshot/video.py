"""Video and picture files in and out, as uint8 RGB arrays.

Frames are [F, H, W, 3], as shown on a screen: rotated, with square pixels. Rates are exact fractions of frames a second.
Sizes are (width, height). Whatever is wrong with a person's file is a UserError of one line that names the file.
"""

import os
import queue
import sys
import threading
import warnings
from array import array
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import ceil, isfinite
from pathlib import Path
from typing import TypeVar

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image, ImageOps

from longshot.errors import UserError
from longshot.files import atomic_path

Frames = UInt8[np.ndarray, "frames height width 3"]
Picture = UInt8[np.ndarray, "height width 3"]
T = TypeVar("T")

MAX_PIXELS = 64_000_000  # of one picture: two 8K frames; checked before anything is decoded
LARGE = (
    1920 * 1088
)  # pixels; up to here one thread decodes with a fifth less work than several, and fast enough
HANDOVER_S = 0.0002  # how long a thread may keep Python's lock while a film is decoded ahead
MAX_BYTES = 2 * 2**30  # of frames returned at once: 70 s of 854x480 at 24 frames/s
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
# Playlists and the like are left out: they are text that makes the reader open other files and addresses.
VIDEO_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,ivf,h264,hevc,m4v,mxf,yuv4mpegpipe,gif"
)
ARCHIVES = {b"PK\3\4": "ZIP", b"Rar!": "RAR", b"7z\xbc\xaf": "7z"}
BT709, LIMITED_RANGE = (
    1,
    1,
)  # FFmpeg's numbers for the usual colours of video; players guess, and differ, when not told


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds: its size as shown, its mean rate, its frames counted, its length in seconds."""

    width: int
    height: int
    fps: Fraction
    frames: int
    seconds: float
    variable_rate: bool


@dataclass(frozen=True)
class FilmFacts:
    """What `survey` says of a video file. broken: what is wrong with its end; what comes before it can be read."""

    info: VideoInfo
    rotation: int
    bits: int
    codec: str
    audio: bool
    broken: str | None = None


# ---------------------------------------------------------------- reading videos


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Return what the video file holds; reads it through once and decodes one frame. UserError when it is damaged."""
    with _opened(path) as video:
        _, frame = next(_decoded(video))
        height, width, _ = _rgb(frame, video.aspect).shape
    with _opened(path) as video:
        _read_stamps(video, stamps := array("q"))
    return _info(video, stamps, (width, height))


def _info(video: "_Video", stamps: "array[int]", size: tuple[int, int]) -> VideoInfo:
    # The same bits as float(video.seconds(stamp)) in a tenth of the time: two hours have 170,000 frames.
    over = video.time_base.denominator * video.first.denominator
    step = video.time_base.numerator * video.first.denominator
    first = video.first.numerator * video.time_base.denominator
    times = np.fromiter(((stamp * step - first) / over for stamp in stamps), np.float64, len(stamps))
    times.sort()
    steps = np.diff(times)
    fps = video.rate
    variable = len(steps) > 0 and float(steps.max() - steps.min()) > max(0.1 * float(steps.mean()), 0.0021)
    seconds = float(times[-1] - times[0]) + float(video.last_step)
    if variable:
        fps = Fraction(len(times) / seconds).limit_denominator(1001)
    return VideoInfo(*size, fps, len(times), seconds, variable)


def read_frames(
    path: str | os.PathLike[str],
    *,
    start_s: float = 0.0,
    stop_s: float | None = None,
    fps: Fraction | None = None,
    size: tuple[int, int] | None = None,
    max_frames: int = 10_000,
) -> Frames:
    """Return the frames shown from `start_s` up to, not including, `stop_s` (the end, when None), in seconds.

    With `fps`, frame i is what is on the screen at start_s + i/fps, whatever the file's own rate and however uneven it is.
    Without, a file of constant rate gives each of its frames once, one of variable rate is read at its mean rate. With
    `size`, each frame is scaled to cover it and cropped around the centre.

    Raises UserError, naming the file: not a video, no frames, damaged or cut short (with the frame and second where it
    breaks), a span outside the video, more than `max_frames` frames or MAX_BYTES in all.
    """
    start, stop = _span(path, start_s, stop_s)
    if fps is None:
        info = probe(path)
        fps = info.fps if info.variable_rate else None
    frames: list[Picture] = []
    with _opened(path) as video:
        for frame in _pictures(_shown(video, start, stop, fps), video.aspect, size):
            frames.append(frame)
            if len(frames) > max_frames:
                raise UserError(
                    f"{path}: more than {max_frames} frames; ask for a shorter span or a lower rate"
                )
            if len(frames) * frame.nbytes > MAX_BYTES:
                raise UserError(
                    f"{path}: more than {MAX_BYTES / 2**30:g} GiB of frames; ask for a shorter span or a smaller size"
                )
        if not frames:
            raise UserError(
                f"{path}: ends at {float(video.end or 0):.2f} s, so it shows nothing from {start_s:g} s on"
            )
    return np.stack(frames)


def survey(path: str | os.PathLike[str]) -> FilmFacts:
    """Return what a film holds, as `probe` does, but also of one whose end is missing or damaged: `broken` says how.

    Reads the file's index and decodes one frame. UserError when not even a first frame can be read.
    """
    with _opened(path) as video:
        if "mp4" in video.container.format.name and _is_encrypted(video.path):
            raise UserError(f"{path}: is encrypted (password-protected); give a copy without protection")
        _, frame = next(_decoded(video))
        height, width, _ = _rgb(frame, video.aspect).shape
        codec = video.stream.codec_context
        bits = max(part.bits for part in codec.format.components) if codec.format else 8
        rotation, audio = round(frame.rotation), bool(video.container.streams.audio)
    broken, stamps = None, array("q")
    with _opened(path) as video:
        try:
            _read_stamps(video, stamps)
        except UserError as error:
            if not stamps:
                raise
            broken = str(error)
    info = _info(video, stamps, (width, height))
    return FilmFacts(info, rotation, bits, codec.name, audio, broken)


def _is_encrypted(path: Path) -> bool:
    """Say whether an MP4 file's pictures are encrypted: FFmpeg reads such a file as if they weren't."""
    edge = 2 * 2**20  # the table of tracks lies at either end
    with path.open("rb") as file:
        head = file.read(edge)
        file.seek(max(edge, path.stat().st_size - edge))
        return any(b"encv" in part and b"sinf" in part for part in (head, file.read(edge)))


def scan(path: str | os.PathLike[str], width: int) -> Iterator[tuple[float, "av.VideoFrame", Picture]]:
    """Yield (second, frame as stored, picture) of every frame in the order shown; memory doesn't grow with the film.

    The picture is RGB as shown, upright and with square pixels, scaled down to `width` or less. Raises UserError where
    the film is damaged or cut short, after all frames that come before.
    """
    with _opened(path) as video:
        if video.stream.codec_context.width * video.stream.codec_context.height <= LARGE:
            video.stream.codec_context.thread_count = 1
        # Only decoding is done ahead: it takes longer than all that is done with its frames.
        with closing(_ahead(_decoded(video))) as frames:
            yield from _small(frames, video.aspect, width)


def _small(
    frames: Iterable[tuple[Fraction, "av.VideoFrame"]], aspect: Fraction, width: int
) -> Iterator[tuple[float, "av.VideoFrame", Picture]]:
    # Kept from frame to frame, since setting up a scaler costs as much as scaling. In two steps, since scaling planes
    # and then making RGB of the few pixels left takes half as long as both at once.
    scaler, painter, size = VideoReformatter(), VideoReformatter(), None
    for time, frame in frames:
        turned = round(frame.rotation / 90) % 4
        if size is None:
            shown = max(1, round(frame.width * aspect)), frame.height
            scale = min(1.0, width / shown[turned % 2])
            size = tuple(max(1, round(length * scale)) for length in shown)
        small = frame
        if frame.format.name in ("yuv420p", "yuvj420p", "yuv420p10le"):
            small = scaler.reformat(frame, *size, format="yuv420p", interpolation="BILINEAR", threads=1)
        painted = painter.reformat(
            small, *size, format="rgb24", interpolation="BILINEAR", threads=1
        ).to_ndarray()
        yield float(time), frame, np.ascontiguousarray(np.rot90(painted, turned))


def _ahead(frames: Iterator[T], count: int = 4) -> Generator[T]:
    """Yield what an iterator yields, made in another thread, so that decoding takes a core of its own.

    Handed over in bunches of `count`, three at most ahead: threads that wait for each other at every frame take longer.
    Meanwhile Python's threads change over after HANDOVER_S: a decoder that has a frame ready has 5 ms to wait otherwise, as
    long as three frames take.
    """
    patience = sys.getswitchinterval()
    made: queue.Queue[tuple[list[T], BaseException | None]] = queue.Queue(2)
    ended = threading.Event()

    def make() -> None:
        bunch: list[T] = []
        try:
            for item in frames:
                bunch.append(item)
                if len(bunch) == count:
                    made.put((bunch, None))
                    bunch = []
                if ended.is_set():
                    return
            made.put((bunch, StopIteration()))
        except BaseException as error:
            made.put((bunch, error))

    thread = threading.Thread(target=make, daemon=True)
    sys.setswitchinterval(min(patience, HANDOVER_S))
    thread.start()
    try:
        while True:
            bunch, error = made.get()
            yield from bunch
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
    finally:
        sys.setswitchinterval(patience)
        ended.set()
        while thread.is_alive():  # it may wait for room
            with suppress(queue.Empty):
                made.get(timeout=0.01)
        thread.join()


def _span(
    path: str | os.PathLike[str], start_s: float, stop_s: float | None
) -> tuple[Fraction, Fraction | None]:
    """Return the span exactly; UserError where it is none."""
    if not isfinite(start_s) or start_s < 0:
        raise UserError(f"{path}: cannot start at {start_s:g} s; give 0 or more seconds")
    if stop_s is not None and not (isfinite(stop_s) and stop_s > start_s):
        raise UserError(
            f"{path}: cannot stop at {stop_s:g} s when it starts at {start_s:g} s; stop must come after start"
        )
    return Fraction(start_s), None if stop_s is None else Fraction(stop_s)


@dataclass
class _Video:
    """An open video file: time_base (a tick of its clock) and times in seconds, rate in frames/s, aspect of its pixels.

    first: its own time of the first frame. stated: the length that its head promises. last_step: how long the frame that
    was read last is shown. end: where it ends, once that has been reached.
    """

    path: Path
    container: "av.container.InputContainer"
    stream: "av.VideoStream"
    time_base: Fraction
    rate: Fraction
    aspect: Fraction
    first: Fraction
    stated: Fraction | None
    last_step: Fraction
    end: Fraction | None = None

    def seconds(self, pts: int) -> Fraction:
        """Turn a time stamp of the stream into seconds since its first frame."""
        return pts * self.time_base - self.first


@contextmanager
def _opened(path: str | os.PathLike[str]) -> Generator[_Video]:
    """Open a video file for reading; what FFmpeg objects to becomes a UserError."""
    file = _readable(path)
    options = {"protocol_whitelist": "file", "format_whitelist": VIDEO_FORMATS}
    try:
        # An absolute path, since FFmpeg takes "name:rest" for an address. Text in odd encodings is of no concern here.
        container = av.open(str(file.resolve()), options=options, metadata_errors="replace")
    except (av.error.FFmpegError, ValueError, MemoryError) as error:
        raise UserError(f"{path}: {_unopenable(file, error)}") from error
    with container:
        yield _video_in(container, file)


def _unopenable(path: Path, error: Exception) -> str:
    """Return what is wrong with a file that FFmpeg does not open."""
    if is_picture(path):
        return "a picture, not a video"
    with path.open("rb") as file:
        if kind := ARCHIVES.get(file.read(4)):
            return f"a {kind} archive, not a video; unpack it first"
    if isinstance(error, av.error.EOFError):
        return "holds no frames"
    return f"not a video that can be read, or only half of one ({_reason(error)})"


def _video_in(container: "av.container.InputContainer", path: Path) -> _Video:
    """Return the file's video stream, with its bounds checked; covers of music files do not count."""
    cover = Disposition.attached_pic
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    if not streams:
        holds = "only sound" if container.streams.audio else "no frames"
        raise UserError(f"{path}: holds {holds}; give a video with moving pictures")
    stream = streams[0]
    context = stream.codec_context
    if context.width * context.height > MAX_PIXELS:
        raise UserError(
            f"{path}: {context.width}x{context.height} is more than {MAX_PIXELS // 10**6} million pixels"
        )
    context.options = {"max_pixels": str(MAX_PIXELS)}
    stream.thread_type = "AUTO"
    time_base = stream.time_base or Fraction(1, av.time_base)
    rate = Fraction(stream.average_rate or stream.base_rate or 25)
    stated = stream.duration * time_base if stream.duration else None
    if stated is None and container.duration and len(container.streams) == 1:
        stated = Fraction(container.duration, av.time_base)
    return _Video(
        path=path,
        container=container,
        stream=stream,
        time_base=time_base,
        rate=rate,
        aspect=stream.sample_aspect_ratio or Fraction(1),
        first=(stream.start_time or 0) * time_base,
        stated=stated,
        last_step=1 / rate,
    )


def _read_stamps(video: _Video, stamps: "array[int]") -> None:
    """Add the time stamp of each frame as they lie in the file, without decoding them; where it breaks, those before."""
    last, shown = None, 0  # of the frame that is shown last: when, and how long
    try:
        for packet in video.container.demux(video.stream):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.size and stamp is not None and not packet.is_discard:
                stamps.append(stamp)
                if last is None or stamp >= last:
                    last, shown = stamp, packet.duration
            if packet.is_corrupt:
                raise _broken(video, Fraction(0) if last is None else video.seconds(last))
    except av.error.FFmpegError as error:
        raise _broken(video, Fraction(0) if last is None else video.seconds(last), error) from error
    if last is None:
        raise UserError(f"{video.path}: holds no frames")
    video.last_step = (shown or 0) * video.time_base or video.last_step
    _note_end(video, video.seconds(last))


def _decoded(video: _Video, start: Fraction = Fraction(0)) -> Iterator[tuple[Fraction, "av.VideoFrame"]]:
    """Yield (second, frame) from the key frame at or before `start` to the end, which must be where the file says."""
    if start > 0:
        stamp = int((start + video.first) / video.time_base)
        video.container.seek(stamp, stream=video.stream, backward=True)
    last, torn = None, set()
    try:
        for frame in _frames(video, torn):
            time = (
                video.seconds(frame.pts) if frame.pts is not None else (last or Fraction(0)) + video.last_step
            )
            if frame.width * frame.height > MAX_PIXELS:
                raise UserError(f"{video.path}: grows to {frame.width}x{frame.height} on the way")
            if (frame.is_corrupt or frame.pts in torn) and time >= start:
                raise _broken(video, time)
            video.last_step = (frame.duration or 0) * video.time_base or video.last_step
            last = time
            yield time, frame
    except av.error.FFmpegError as error:
        raise _broken(video, start if last is None else last + video.last_step, error) from error
    if last is None:
        raise UserError(f"{video.path}: holds no frames that can be read")
    never_shown = [stamp for stamp in torn if stamp is None or video.seconds(stamp) >= start]
    if never_shown:
        raise _broken(video, last + video.last_step)
    _note_end(video, last)


def _frames(video: _Video, torn: set[int | None]) -> Iterator["av.VideoFrame"]:
    """Yield frames as they are decoded; `torn` gets the stamps of those whose bytes end early; decoders make do or drop them."""
    for packet in video.container.demux(video.stream):
        if packet.is_corrupt:
            torn.add(packet.pts)
        yield from packet.decode()


def _note_end(video: _Video, last: Fraction) -> None:
    """Note where the video ends; UserError when the frame at `last` is not the last one that its head promises."""
    video.end = last + video.last_step
    slack = Fraction(3, 2) / video.rate + video.time_base
    if video.stated is not None and video.end + slack < video.stated:
        raise _broken(video, video.end)


def _broken(video: _Video, time: Fraction, error: Exception | None = None) -> UserError:
    reason = f" ({_reason(error)})" if error else ""
    length = f" of {float(video.stated):.2f} s" if video.stated else ""
    where = f"frame {round(time * video.rate)}, second {float(time):.2f}{length}"
    return UserError(f"{video.path}: damaged or cut short at {where}{reason}; copy or export it again")


def _shown(
    video: _Video, start: Fraction, stop: Fraction | None, fps: Fraction | None
) -> Iterator["av.VideoFrame"]:
    """Yield the frames on the screen in [start, stop): each once without `fps`, else those at start + i/fps."""
    # Containers round time stamps (WebM to 1 ms), so a frame may come up to that much after its nominal time.
    slack = min(video.time_base, 1 / (4 * max(video.rate, fps or video.rate)))
    if fps is None:
        yield from _each_once(video, start - slack, None if stop is None else stop - slack)
    else:
        count = None if stop is None else ceil((stop - start - slack / 2) * fps)
        yield from _at_ticks(video, start, 1 / fps, slack, count)
    if stop is not None and video.end is not None and video.end + 1 / video.rate < stop:
        raise UserError(
            f"{video.path}: ends at {float(video.end):.2f} s, before the {float(stop):g} s asked for"
        )


def _each_once(video: _Video, start: Fraction, stop: Fraction | None) -> Iterator["av.VideoFrame"]:
    for time, frame in _decoded(video, max(start, Fraction(0))):
        if stop is not None and time >= stop:
            return
        if time >= start:
            yield frame


def _at_ticks(
    video: _Video, start: Fraction, tick: Fraction, slack: Fraction, count: int | None
) -> Iterator["av.VideoFrame"]:
    """Yield the frame on the screen at start + i * tick, `count` times or to the end of the video."""
    shown, done = None, 0
    for time, frame in _decoded(video, start):
        while shown is not None and start + done * tick + slack < time:
            yield shown
            done += 1
            if done == count:
                return
        shown = frame
    if shown is None or video.end is None:
        return
    end = video.end if count is None else start + (count - Fraction(1, 2)) * tick
    while start + done * tick + slack < end:
        yield shown
        done += 1


def _pictures(
    frames: Iterable["av.VideoFrame"], aspect: Fraction, size: tuple[int, int] | None
) -> Iterator[Picture]:
    """Yield RGB pictures, all of the first one's size; a frame that is repeated is converted once."""
    before: tuple[av.VideoFrame, Picture] | None = None
    for frame in frames:
        if before is None or frame is not before[0]:
            picture = _rgb(frame, aspect)
            size = size or (picture.shape[1], picture.shape[0])
            before = frame, fit(picture[None], size)[0]
        yield before[1]


def _rgb(frame: "av.VideoFrame", aspect: Fraction) -> Picture:
    """Return the frame as shown: RGB of 8 bits, with square pixels, turned the right way up."""
    picture = frame.reformat(width=max(1, round(frame.width * aspect)), format="rgb24").to_ndarray()
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


def _readable(path: str | os.PathLike[str]) -> Path:
    """Return the path of an ordinary file with something in it; UserError otherwise."""
    file = Path(path)
    try:
        if file.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        if not file.exists():
            raise UserError(f"{path}: no such file")
        if not file.is_file():
            raise UserError(f"{path}: not an ordinary file")
        with file.open("rb") as opened:
            if not opened.read(1):
                raise UserError(f"{path}: is empty (0 bytes)")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({_reason(error)})") from error
    return file


def _reason(error: Exception) -> str:
    """Return the system's own words for an error, without the path and call that FFmpeg adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


# ---------------------------------------------------------------- pictures


def read_image(path: str | os.PathLike[str], size: tuple[int, int] | None = None) -> Picture:
    """Return a picture file as RGB, turned as its EXIF data says, transparent parts white; of a moving one the first frame.

    With `size`, scaled to cover it and cropped around the centre. Raises UserError, naming the file, when it is missing,
    damaged, not a picture, or larger than MAX_PIXELS (seen before it is decoded).
    """
    file = _readable(path)
    try:
        with _unwarned(), Image.open(file, formats=_readable_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise UserError(
                    f"{path}: {image.width}x{image.height} is more than {MAX_PIXELS // 10**6} million pixels; "
                    "scale it down first"
                )
            picture = _flat(image)
    except UserError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UserError(
            f"{path}: not a picture that can be read; give a {', '.join(PICTURE_FORMATS[:4])} file"
        ) from error
    except Exception as error:  # on damaged files Pillow's readers fail in whatever way the damage leads them
        raise UserError(f"{path}: a damaged or unsafe picture ({_reason(error)})") from error
    return picture if size is None else fit(picture[None], size)[0]


def write_image(path: str | os.PathLike[str], image: Picture) -> None:
    """Write one RGB picture, atomically, in the format that the suffix names (.png, .jpg, .webp)."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, format=_format_of(path, PICTURE_FORMATS), quality=92)


def fit(frames: Frames, size: tuple[int, int]) -> UInt8[np.ndarray, "frames new_height new_width 3"]:
    """Return the frames scaled to cover `size` (width, height) and cropped around the centre; the same array if they fit."""
    (width, height), (_, old_height, old_width, _) = size, frames.shape
    if (width, height) == (old_width, old_height):
        return frames
    scale = max(width / old_width, height / old_height)
    margin_x, margin_y = (old_width - width / scale) / 2, (old_height - height / scale) / 2
    box = (margin_x, margin_y, old_width - margin_x, old_height - margin_y)
    images = (Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS, box=box) for frame in frames)
    return (
        np.stack([np.asarray(image) for image in images])
        if len(frames)
        else np.empty((0, height, width, 3), np.uint8)
    )


def _flat(image: Image.Image) -> Picture:
    """Return RGB of 8 bits: upright, 16-bit greys scaled, transparent parts over white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert("RGB"))


def _readable_formats() -> list[str]:
    """Return those of PICTURE_FORMATS that this build of Pillow has; AVIF is not in all of them."""
    Image.init()
    return [name for name in PICTURE_FORMATS if name in Image.OPEN]


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Say whether the file is a still picture that `read_image` knows; what cannot be read is none, and a moving GIF neither."""
    try:
        with _unwarned(), Image.open(path, formats=_readable_formats()) as image:
            return image.format != "GIF" or getattr(image, "n_frames", 1) == 1
    except Exception:  # as in read_image
        return False


@contextmanager
def _unwarned() -> Generator[None]:
    """Keep Pillow's warning of large pictures off the terminal; MAX_PIXELS is the bound here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def _format_of(path: str | os.PathLike[str], formats: Sequence[str]) -> str:
    """Return Pillow's name of the format that the path's suffix stands for; UserError when it is none of `formats`."""
    found = Image.registered_extensions().get(Path(path).suffix.lower(), "")
    if found not in formats:
        raise UserError(f"{path}: the name must end in .{' or .'.join(name.lower() for name in formats[:4])}")
    return found


# ---------------------------------------------------------------- writing videos


def write_video(
    path: str | os.PathLike[str],
    frames: Frames,
    fps: Fraction,
    *,
    scale: int = 1,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an H.264 video (.mp4, .mov or .mkv) that plays everywhere and starts before it is loaded whole; atomically.

    `scale` enlarges smoothly by a whole number. H.264's usual form has no odd sizes, so an odd width or height gains one
    repeated column or row. `metadata` goes into the file as tags. Raises UserError when the file cannot be written whole;
    ValueError without frames.
    """
    if len(frames) == 0:
        raise ValueError("a video needs at least one frame")
    if Path(path).suffix.lower() not in (".mp4", ".mov", ".mkv"):
        raise UserError(f"{path}: the name must end in .mp4, .mov or .mkv")
    with atomic_path(path) as temporary:
        _encode(temporary, frames, Fraction(fps), scale, metadata or {})
        # FFmpeg's last write happens as the file is closed, and a full disk goes unreported there.
        with _opened(temporary) as video:
            _read_stamps(video, stamps := array("q"))
        written = len(stamps)
        if written != len(frames):
            raise OSError(f"only {written} of {len(frames)} frames arrived in the file")


def _encode(path: Path, frames: Frames, fps: Fraction, scale: int, metadata: Mapping[str, str]) -> None:
    options = {"movflags": "faststart+use_metadata_tags"} if path.suffix.lower() != ".mkv" else {}
    with av.open(str(path.resolve()), "w", options=options) as container:
        container.metadata.update({key: str(value) for key, value in metadata.items()})
        stream = container.add_stream("libx264", rate=fps)
        height, width = (n * scale + n * scale % 2 for n in frames.shape[1:3])
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        # Without frames predicted from later ones: in planning those, x264 (165) reads memory that it never set, and the same
        # pictures then give other bytes once in a while. Costs 1 to 8 % of a file's size.
        stream.options = {"crf": "15", "preset": "medium", "bf": "0"}
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        for index, frame in enumerate(enlarged(frames, scale)):
            picture = av.VideoFrame.from_ndarray(_even(frame), format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace=BT709, dst_color_range=LIMITED_RANGE)
            picture.pts, picture.time_base = index, 1 / fps
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _even(frame: Picture) -> UInt8[np.ndarray, "even_height even_width 3"]:
    """Return the frame with its last column and row repeated where that makes an odd size even."""
    return np.pad(frame, ((0, frame.shape[0] % 2), (0, frame.shape[1] % 2), (0, 0)), mode="edge")


def enlarged(frames: Frames, scale: int) -> Iterator[Picture]:
    """Yield the frames enlarged by a whole number, smoothly (bicubic)."""
    if scale < 1:
        raise ValueError(f"scale must be 1 or more, got {scale}")
    for frame in frames:
        size = frame.shape[1] * scale, frame.shape[0] * scale
        yield (
            frame if scale == 1 else np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
        )


def write_animation(path: str | os.PathLike[str], frames: Frames, fps: Fraction, *, scale: int = 1) -> None:
    """Write an endless animation for a web page (.webp, or .gif with its 256 colours), atomically."""
    if len(frames) == 0:
        raise ValueError("an animation needs at least one frame")
    kind = _format_of(path, ("WEBP", "GIF"))
    images = [Image.fromarray(frame) for frame in enlarged(frames, scale)]
    unit = 10 if kind == "GIF" else 1  # ms: GIF counts in hundredths of a second
    marks = [
        round(index * 1000 / fps / unit) * unit for index in range(len(images) + 1)
    ]  # rounding must not add up
    options = {"duration": [int(b - a) for a, b in pairwise(marks)], "loop": 0}
    if kind == "GIF":
        palette = _palette(images)
        images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
        options |= {"optimize": False}  # one palette for all frames: nothing shimmers
    else:
        options |= {"quality": 85, "method": 4}
    with atomic_path(path) as temporary:
        images[0].save(temporary, format=kind, save_all=True, append_images=images[1:], **options)


def _palette(images: Sequence[Image.Image]) -> Image.Image:
    """Return 256 colours that serve all the images, taken from up to 32 of them at once."""
    chosen = [images[i] for i in np.unique(np.linspace(0, len(images) - 1, 32).round().astype(int))]
    sample = np.concatenate(
        [np.asarray(image.resize((image.width // 2 or 1, image.height // 2 or 1))) for image in chosen]
    )
    return Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT)

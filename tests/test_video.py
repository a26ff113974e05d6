import contextlib
import io
import re
import resource
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from longshot import video
from longshot.errors import UserError
from longshot.video import fit, probe, read_frames, read_image, write_animation, write_image, write_video

EIGHT = Fraction(8)


def greys(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frames that say their own number: frame i is grey, 5 * i + 10."""
    return np.broadcast_to(
        (np.arange(count) * 5 + 10).astype(np.uint8)[:, None, None, None], (count, height, width, 3)
    ).copy()


def numbers(frames: np.ndarray) -> list[int]:
    """The numbers that `greys` wrote into the frames."""
    return [round((float(frame.mean()) - 10) / 5) for frame in frames]


def textured(count: int, height: int = 64, width: int = 96) -> np.ndarray:
    """Frames that are hard to compress, so that damage in the file is damage in the picture."""
    picture = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return np.stack([np.roll(picture, i, axis=1) for i in range(count)])


def encode(
    path: Path,
    frames,
    *,
    stamps=None,
    rate=8,
    base=1000,
    pixels="yuv420p",
    codec="libx264",
    rotate=0,
    aspect=None,
):
    """Write a video the way other programs do: time stamps in ticks of 1/base s, rotation, pixel shape, depth."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pixels
        stream.options = {"crf": "10"}
        stream.time_base = Fraction(1, base)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotate:
            stream.set_display_rotation(rotate)
        for i, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.time_base = Fraction(1, base)
            picture.pts = stamps[i] if stamps else i * base // rate
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


# ---------------------------------------------------------------- a real film


def test_the_film_is_probed_exactly(film):
    assert probe(film) == video.VideoInfo(854, 480, Fraction(24), 720, 30.0, False)


@pytest.fixture(scope="module")
def small_film(film):
    return read_frames(film, size=(96, 54))


def test_every_frame_of_the_film_is_read_once(small_film):
    assert small_film.shape == (720, 54, 96, 3)


def test_the_cuts_of_the_film_lie_between_the_frames_they_should(small_film):
    change = np.abs(np.diff(small_film.astype(int), axis=0)).mean(axis=(1, 2, 3))
    largest = np.sort(np.argsort(change)[-3:]) + 1
    assert largest.tolist() == [285, 378, 553]
    assert change[284] > 8 * max(change[283], change[285])


@pytest.mark.parametrize(("first", "last"), [(0, 5), (100, 103), (284, 286), (377, 379), (715, 720)])
def test_a_span_of_the_film_is_the_same_frames_as_in_the_whole(film, small_film, first, last):
    span = read_frames(film, start_s=first / 24, stop_s=last / 24, size=(96, 54))
    assert np.array_equal(span, small_film[first:last])


def test_a_third_of_the_rate_is_every_third_frame(film, small_film):
    slow = read_frames(film, start_s=10.0, stop_s=13.0, fps=EIGHT, size=(96, 54))
    assert np.array_equal(slow, small_film[240:312:3])


def test_a_span_beyond_the_end_is_refused_not_shortened(film):
    with pytest.raises(UserError, match=r"mp4: ends at 30\.00 s, before the 31 s asked for"):
        read_frames(film, start_s=29.0, stop_s=31.0, fps=EIGHT, size=(48, 32))
    with pytest.raises(UserError, match=r"ends at 30\.00 s, so it shows nothing from 40 s on"):
        read_frames(film, start_s=40.0, fps=EIGHT)


def test_a_film_larger_than_its_bounds_is_refused(film, monkeypatch):
    with pytest.raises(UserError, match="more than 100 frames; ask for a shorter span"):
        read_frames(film, size=(48, 32), max_frames=100)
    monkeypatch.setattr(video, "MAX_BYTES", 10**6)
    with pytest.raises(UserError, match="GiB of frames"):
        read_frames(film)
    monkeypatch.setattr(video, "MAX_PIXELS", 10**5)
    with pytest.raises(UserError, match="854x480 is more than"):
        read_frames(film)


# ---------------------------------------------------------------- odd but good videos


def test_a_variable_rate_is_resampled_by_the_time_frames_are_shown(tmp_path):
    stamps = [0, 125, 250, 1000, 1125, 2500, 2625]
    path = encode(tmp_path / "vfr.mkv", greys(7), stamps=stamps)
    info = probe(path)
    assert info.variable_rate
    assert info.frames == 7
    shown = numbers(read_frames(path, fps=EIGHT, stop_s=2.75))
    assert shown == [0, 1, *[2] * 6, 3, *[4] * 11, 5, 6]
    assert numbers(read_frames(path, start_s=0.9, stop_s=1.3, fps=Fraction(5))) == [2, 3]


def test_a_variable_rate_without_a_rate_asked_for_is_read_at_its_mean_rate(tmp_path):
    path = encode(tmp_path / "vfr.mkv", greys(5), stamps=[0, 100, 200, 300, 1400])
    info = probe(path)
    assert len(read_frames(path)) == pytest.approx(float(info.fps * Fraction(info.seconds)), abs=1)


@pytest.mark.parametrize(
    ("rate", "suffix"), [(24, "mkv"), (Fraction(30000, 1001), "mkv"), (25, "mp4"), (12, "mov")]
)
def test_rounded_time_stamps_neither_drop_nor_repeat_a_frame(tmp_path, rate, suffix):
    stamps = [round(i * 1000 / rate) for i in range(40)]
    path = encode(tmp_path / f"a.{suffix}", greys(40), stamps=stamps, rate=rate)
    assert numbers(read_frames(path)) == list(range(40))
    assert numbers(read_frames(path, fps=Fraction(rate))) == list(range(40))
    assert not probe(path).variable_rate


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "avi", "ts"])
def test_every_usual_container_is_read(tmp_path, suffix):
    path = encode(tmp_path / f"a.{suffix}", greys(20), base=8)
    assert numbers(read_frames(path)) == list(range(20))
    assert probe(path).frames == 20


@pytest.mark.parametrize(("degrees", "corner"), [(90, (-1, 0)), (-90, (0, -1)), (180, (-1, -1))])
def test_a_turned_video_is_shown_the_right_way_up(tmp_path, degrees, corner):
    frames = np.zeros((3, 32, 48, 3), np.uint8)
    frames[:, :8, :8] = 255  # white in the upper left corner
    path = encode(tmp_path / "turned.mp4", frames, rotate=degrees)
    shown = read_frames(path)
    info = probe(path)
    assert (info.width, info.height) == ((48, 32) if degrees == 180 else (32, 48))
    assert shown.shape[1:3] == (info.height, info.width)
    row, column = (4 if place == 0 else -4 for place in corner)
    assert shown[0, row, column].min() > 230
    assert shown[0, -row, -column].max() < 25


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    path = encode(tmp_path / "wide.mp4", greys(3), aspect=Fraction(4, 3))
    assert (probe(path).width, probe(path).height) == (64, 32)
    assert read_frames(path).shape == (3, 32, 64, 3)


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "yuvj420p"])
def test_other_depths_and_samplings_come_out_as_8_bit_rgb(tmp_path, pixels):
    path = encode(tmp_path / "deep.mkv", greys(10), pixels=pixels)
    assert numbers(read_frames(path)) == list(range(10))


def test_an_odd_size_is_read_as_it_is(tmp_path):
    path = encode(tmp_path / "odd.mkv", greys(3, 33, 47), pixels="yuv444p")
    assert read_frames(path).shape == (3, 33, 47, 3)


# ---------------------------------------------------------------- bad videos


def bad_line(path, **settings) -> str:
    """The one line that reading a bad file gives; it names the file."""
    with pytest.raises(UserError) as caught:
        read_frames(path, **settings)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def test_what_is_no_file_is_refused(tmp_path):
    assert "no such file" in bad_line(tmp_path / "none.mp4")
    assert "is a folder" in bad_line(tmp_path)
    assert "not an ordinary file" in bad_line(Path("/dev/zero"))


def test_what_is_no_video_is_refused(tmp_path):
    (tmp_path / "empty.mp4").touch()
    assert "is empty" in bad_line(tmp_path / "empty.mp4")
    (tmp_path / "text.mp4").write_text("not a video " * 100)
    assert "not a video that can be read" in bad_line(tmp_path / "text.mp4")
    write_image(tmp_path / "a.png", greys(1)[0])
    assert "a picture, not a video" in bad_line(tmp_path / "a.png")


def test_a_playlist_cannot_make_the_reader_open_other_files(tmp_path):
    write_video(tmp_path / "secret.mp4", greys(3), EIGHT)
    playlist = tmp_path / "list.mp4"
    playlist.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n")
    assert "not a video that can be read" in bad_line(playlist)
    playlist.write_text("ffconcat version 1.0\nfile secret.mp4\n")
    assert "not a video that can be read" in bad_line(playlist)


def test_a_file_with_only_sound_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux([*stream.encode(sound), *stream.encode()])
    assert "only sound" in bad_line(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_video_without_frames_is_refused(tmp_path, suffix):
    path = tmp_path / f"none.{suffix}"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        container.start_encoding()
    assert "no frames" in bad_line(path)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9, 0.999])
def test_a_half_written_video_is_refused_with_the_place_where_it_breaks(tmp_path, share):
    write_video(tmp_path / "whole.mp4", textured(40), EIGHT)
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: int(len(data) * share)])
    for settings in ({}, {"fps": EIGHT}):
        assert "damaged or cut short at frame" in bad_line(tmp_path / "cut.mp4", **settings)
    with pytest.raises(UserError, match=r"at frame \d+, second \d+\.\d\d of 5\.00 s"):
        probe(tmp_path / "cut.mp4")


def test_a_video_that_lost_its_index_is_refused(tmp_path):
    encode(tmp_path / "whole.mp4", textured(40))  # its index is at the end
    data = (tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert "only half of one" in bad_line(tmp_path / "cut.mp4")


def test_what_comes_before_the_damage_can_be_read(tmp_path):
    write_video(tmp_path / "whole.mp4", textured(40), EIGHT)
    with av.open(str(tmp_path / "whole.mp4")) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    data = bytearray((tmp_path / "whole.mp4").read_bytes())
    hurt = starts[6]  # its size comes first: of what follows, a decoder may take any bytes for a picture
    data[hurt : hurt + 200] = np.random.default_rng(1).bytes(200)
    (tmp_path / "hurt.mp4").write_bytes(data)
    found = re.search(r"damaged or cut short at frame (\d+)", bad_line(tmp_path / "hurt.mp4", fps=EIGHT))
    assert found and int(found[1]) == 6
    assert len(read_frames(tmp_path / "hurt.mp4", stop_s=0.5, fps=EIGHT)) == 4


@pytest.mark.parametrize(
    ("start", "stop"), [(-1.0, None), (float("nan"), None), (2.0, 1.0), (1.0, 1.0), (0.0, float("inf"))]
)
def test_a_span_that_is_none_is_refused(tmp_path, start, stop):
    write_video(tmp_path / "a.mp4", greys(20), EIGHT)
    assert "cannot st" in bad_line(tmp_path / "a.mp4", start_s=start, stop_s=stop)


# ---------------------------------------------------------------- writing


def test_what_is_written_is_what_is_read(tmp_path):
    frames = greys(20)
    frames[..., 0] = 200
    write_video(tmp_path / "a.mp4", frames, EIGHT)
    back = read_frames(tmp_path / "a.mp4")
    assert np.abs(back.astype(int) - frames).max() <= 4
    assert probe(tmp_path / "a.mp4") == video.VideoInfo(48, 32, EIGHT, 20, 2.5, False)


@pytest.mark.parametrize("fps", [Fraction(8), Fraction(24), Fraction(24000, 1001)])
def test_a_written_rate_is_exact(tmp_path, fps):
    write_video(tmp_path / "a.mp4", greys(24), fps)
    assert probe(tmp_path / "a.mp4").fps == fps


def test_one_frame_makes_a_video(tmp_path):
    write_video(tmp_path / "a.mp4", greys(1), EIGHT)
    assert probe(tmp_path / "a.mp4") == video.VideoInfo(48, 32, EIGHT, 1, 0.125, False)
    assert numbers(read_frames(tmp_path / "a.mp4", stop_s=0.125, fps=EIGHT)) == [0]


def test_a_video_can_be_enlarged_by_a_whole_number(tmp_path):
    write_video(tmp_path / "a.mp4", greys(3), EIGHT, scale=4)
    assert read_frames(tmp_path / "a.mp4").shape == (3, 128, 192, 3)
    with pytest.raises(ValueError, match="scale must be 1 or more"):
        write_video(tmp_path / "a.mp4", greys(3), EIGHT, scale=0)
    assert len(read_frames(tmp_path / "a.mp4")) == 3


def test_an_odd_size_gains_one_row_and_column(tmp_path):
    write_video(tmp_path / "a.mp4", greys(3, 31, 47), EIGHT)
    assert read_frames(tmp_path / "a.mp4").shape == (3, 32, 48, 3)


def test_a_video_carries_where_it_comes_from(tmp_path):
    tags = {"title": "café", "comment": '{"seed": 7}', "longshot_scene": "0123abc"}
    write_video(tmp_path / "a.mp4", greys(3), EIGHT, metadata=tags)
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert tags.items() <= container.metadata.items()
    assert (tmp_path / "a.mp4").read_bytes().find(b"moov") < (tmp_path / "a.mp4").read_bytes().find(b"mdat")


def test_the_same_frames_make_the_same_file(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, textured(10), EIGHT, metadata={"title": "x"})
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()


def test_a_name_that_says_no_format_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"must end in \.mp4"):
        write_video(tmp_path / "a.gif", greys(3), EIGHT)
    with pytest.raises(UserError, match=r"must end in \.png"):
        write_image(tmp_path / "a.mp4", greys(1)[0])
    with pytest.raises(UserError, match=r"must end in \.webp or \.gif"):
        write_animation(tmp_path / "a.png", greys(3), EIGHT)


WRITE_UNDER_A_LIMIT = """
import resource, sys
from fractions import Fraction
import numpy as np
from longshot.errors import UserError
from longshot.video import write_image, write_video
frames = np.random.default_rng(0).integers(0, 255, (40, 64, 96, 3), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_image(sys.argv[1], frames[0]) if sys.argv[1].endswith("png") else write_video(sys.argv[1], frames, Fraction(8))
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.mark.parametrize("name", ["scene.mp4", "sheet.png"])
@pytest.mark.parametrize("room", [100, 5_000])
def test_a_write_that_finds_no_room_leaves_the_old_file_whole(tmp_path, name, room):
    target = tmp_path / name
    target.write_bytes(b"the old file")
    command = [sys.executable, "-c", WRITE_UNDER_A_LIMIT, str(target), str(room)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2, result.stderr
    assert result.stdout.startswith(f"{target}: could not be written (")
    assert result.stdout.count("\n") == 1
    assert target.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [target]


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small disk takes root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.97])
def test_a_full_disk_leaves_the_old_video_whole(tmp_path, tiny_disk, share):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
    write_video(tmp_path / "new.mp4", noise, EIGHT)
    room = int((tmp_path / "new.mp4").stat().st_size * share)  # from none at all to nearly enough
    write_video(tiny_disk / "scene.mp4", greys(8), EIGHT)
    old = (tiny_disk / "scene.mp4").read_bytes()
    filler = tiny_disk / "filler"
    filler.write_bytes(bytes(shutil.disk_usage(tiny_disk).free - room))
    with pytest.raises(UserError, match=r"scene\.mp4: could not be written \(.+\)$"):
        write_video(tiny_disk / "scene.mp4", noise, EIGHT)
    assert (tiny_disk / "scene.mp4").read_bytes() == old
    assert sorted(tiny_disk.iterdir()) == [filler, tiny_disk / "scene.mp4"]


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_an_animation_plays_at_its_rate_for_ever(tmp_path, name):
    write_animation(tmp_path / name, textured(24, 32, 48), EIGHT, scale=2)
    with Image.open(tmp_path / name) as image:
        assert image.size == (96, 64)
        assert image.n_frames == 24
        assert image.info["loop"] == 0
        total = 0
        for index in range(24):
            image.seek(index)
            image.load()
            total += image.info["duration"]
    assert total == 3000


# ---------------------------------------------------------------- pictures


def save(path: Path, image: Image.Image, **settings) -> Path:
    image.save(path, **settings)
    return path


def test_a_picture_comes_back_as_it_was_written(tmp_path):
    picture = textured(1)[0]
    write_image(tmp_path / "a.png", picture)
    assert np.array_equal(read_image(tmp_path / "a.png"), picture)
    write_image(tmp_path / "a.jpg", greys(1)[0])
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 10).max() <= 2


def test_a_picture_is_turned_as_its_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn clockwise by 90 degrees
    picture = Image.new("RGB", (48, 32))
    picture.paste((255, 255, 255), (0, 0, 8, 8))
    shown = read_image(save(tmp_path / "a.png", picture, exif=exif))
    assert shown.shape == (48, 32, 3)
    assert shown[4, -4].min() == 255


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 100), (100, 100, 100)),
        (Image.new("I;16", (4, 4), 100 * 257), (100, 100, 100)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), (255, 255, 255)),
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("RGB", (4, 4), (1, 2, 3)).quantize(4), (1, 2, 3)),
    ],
    ids=["grey", "16 bits", "transparent", "black and white", "palette"],
)
def test_every_kind_of_picture_becomes_rgb(tmp_path, image, expected):
    assert read_image(save(tmp_path / "a.png", image))[0, 0].tolist() == list(expected)


def test_of_a_moving_picture_the_first_frame_counts(tmp_path):
    write_animation(tmp_path / "a.gif", greys(5), EIGHT)
    assert numbers(read_image(tmp_path / "a.gif")[None]) == [0]


def test_a_still_picture_is_told_from_a_video(tmp_path):
    write_image(tmp_path / "a.gif", greys(1)[0])
    write_animation(tmp_path / "moving.gif", textured(5), EIGHT)
    write_video(tmp_path / "a.mp4", greys(3), EIGHT)
    shown = {name: video.is_picture(tmp_path / name) for name in ("a.gif", "moving.gif", "a.mp4", "none.png")}
    assert shown == {"a.gif": True, "moving.gif": False, "a.mp4": False, "none.png": False}
    assert read_frames(tmp_path / "moving.gif").shape == (5, 64, 96, 3)


def bad_image_line(path) -> str:
    with pytest.raises(UserError) as caught:
        read_image(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ")
    assert "\n" not in line
    return line


def test_what_is_no_picture_is_refused(tmp_path):
    (tmp_path / "text.png").write_text("not a picture")
    assert "not a picture that can be read" in bad_image_line(tmp_path / "text.png")
    (tmp_path / "empty.png").touch()
    assert "is empty" in bad_image_line(tmp_path / "empty.png")
    assert "no such file" in bad_image_line(tmp_path / "none.png")
    assert "is a folder" in bad_image_line(tmp_path)
    postscript = tmp_path / "code.png"  # a format whose reader would run a program
    postscript.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n")
    assert "not a picture that can be read" in bad_image_line(postscript)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_half_a_picture_is_refused(tmp_path, suffix):
    write_image(tmp_path / f"whole.{suffix}", textured(1)[0])
    data = (tmp_path / f"whole.{suffix}").read_bytes()
    half = tmp_path / f"half.{suffix}"
    half.write_bytes(data[: len(data) // 2])
    assert "picture" in bad_image_line(half)


@pytest.mark.parametrize("side", [9_000, 14_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, side, recwarn):
    bomb = save(tmp_path / "bomb.png", Image.new("1", (side, side)), optimize=True)
    assert bomb.stat().st_size < 200_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    line = bad_image_line(bomb)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000  # KiB
    assert "unsafe" in line or "more than 64 million pixels" in line
    assert len(recwarn) == 0


def test_random_damage_gives_a_picture_or_one_line(tmp_path):
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(textured(1)[0]).save(buffer, kind)
        for round_ in range(20):
            data = bytearray(buffer.getvalue())
            for place in rng.integers(0, len(data), 8):
                data[place] = rng.integers(256)
            path = tmp_path / f"{kind}{round_}"
            path.write_bytes(data)
            with contextlib.suppress(UserError):
                assert read_image(path).dtype == np.uint8


# ---------------------------------------------------------------- fitting


def test_fitting_covers_the_size_and_crops_around_the_centre():
    frames = np.zeros((1, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = 255  # the middle half is white
    assert fit(frames, (40, 40)).min() == 255
    frames = np.zeros((1, 80, 40, 3), np.uint8)
    frames[:, 20:60] = 255
    assert fit(frames, (20, 20))[:, 4:-4].min() >= 254
    assert fit(frames, (96, 48)).shape == (1, 48, 96, 3)


def test_fitting_leaves_frames_that_fit_untouched():
    frames = textured(2)
    assert fit(frames, (96, 64)) is frames

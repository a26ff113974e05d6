"""Pictures that sum up a scene at a glance: a contact sheet with a row a shot, a strip with a picture a shot."""

import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

Frames = UInt8[np.ndarray, "_ _ _ 3"]  # frames, height, width: each shot may have its own
Picture = UInt8[np.ndarray, "_ _ 3"]

STAND_INS = str.maketrans("–—łŁøØ×", "--lLoOx") | {ord("ß"): "ss", ord("æ"): "ae", ord("œ"): "oe"}
BACKGROUND, INK, FAINT = (22, 23, 27), (236, 236, 232), (140, 143, 152)


def contact_sheet(
    shots: Sequence[Frames],
    captions: Sequence[str] | None = None,
    *,
    fps: Fraction | None = None,
    title: str = "",
    columns: int = 5,
    tile_width: int = 288,
) -> Picture:
    """Return one picture of a scene: a row a shot with up to `columns` evenly spaced frames, its number, time and prompt.

    Times are shown with `fps`. A prompt takes two lines at most, and ends in an ellipsis where it is longer.
    """
    margin, gap = tile_width // 9, tile_width // 36
    width = 2 * margin + columns * tile_width + (columns - 1) * gap
    words = captions or [""] * len(shots)
    starts = np.cumsum([0, *(len(frames) for frames in shots)])
    rows = [_heading(title, width - 2 * margin, tile_width // 9)] if title else []
    for number, (frames, caption) in enumerate(zip(shots, words, strict=True), start=1):
        time = f"{float(starts[number - 1] / fps):.1f}-{float(starts[number] / fps):.1f} s" if fps else ""
        tiles = [_tile(frame, tile_width) for frame in _evenly(frames, columns)]
        rows.append(_row(number, caption, time, tiles, width - 2 * margin, gap))
    height = margin + sum(row.height + margin for row in rows)
    sheet = Image.new("RGB", (width, height), BACKGROUND)
    top = margin
    for row in rows:
        sheet.paste(row, (margin, top))
        top += row.height + margin
    return np.asarray(sheet)


def film_strip(shots: Sequence[Frames], *, height: int = 192) -> Picture:
    """Return one wide picture with the middle frame of every shot, side by side, `height` pixels high."""
    gap = height // 32
    tiles = []
    for frames in shots:
        middle = frames[len(frames) // 2]
        tiles.append(_tile(middle, round(height * middle.shape[1] / middle.shape[0])))
    strip = Image.new("RGB", (sum(tile.width + gap for tile in tiles) + gap, height + 2 * gap), BACKGROUND)
    left = gap
    for tile in tiles:
        strip.paste(tile.resize((tile.width, height)), (left, gap))
        left += tile.width + gap
    return np.asarray(strip)


def _evenly(frames: Frames, count: int) -> Frames:
    """Return up to `count` different frames, the first and the last among them."""
    return frames[np.unique(np.linspace(0, len(frames) - 1, count).round().astype(int))]


def _tile(frame: Picture, width: int) -> Image.Image:
    """Return the frame, whole, scaled to `width`, with slightly rounded corners on the sheet's background."""
    height = max(1, round(frame.shape[0] * width / frame.shape[1]))
    picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC)
    mask = Image.new("L", (2 * width, 2 * height), 0)
    ImageDraw.Draw(mask).rounded_rectangle(
        (0, 0, 2 * width - 1, 2 * height - 1), radius=width // 20, fill=255
    )
    tile = Image.new("RGB", (width, height), BACKGROUND)
    tile.paste(picture, mask=mask.resize((width, height)))
    return tile


def _row(number: int, caption: str, time: str, tiles: list[Image.Image], width: int, gap: int) -> Image.Image:
    """Return one shot of a contact sheet: number, prompt and time in a line above its frames."""
    size = max(12, tiles[0].width // 13)
    bold, plain, small = (ImageFont.load_default(size * share) for share in (1.15, 1.0, 0.8))
    indent = round(bold.getlength("00")) + size // 2
    room = width - indent - round(small.getlength(time)) - size
    lines = _wrapped(caption, plain, room, 2) or [""]
    top = round(len(lines) * size * 1.35 + size * 0.35)
    row = Image.new("RGB", (width, top + max(tile.height for tile in tiles)), BACKGROUND)
    draw = ImageDraw.Draw(row)
    draw.text((0, size), str(number), INK, bold, anchor="ls")
    draw.text((width, size), time, FAINT, small, anchor="rs")
    for index, line in enumerate(lines):
        draw.text((indent, size + index * size * 1.35), line, INK, plain, anchor="ls")
    for index, tile in enumerate(tiles):
        row.paste(tile, (index * (tile.width + gap), top))
    return row


def _heading(title: str, width: int, size: int) -> Image.Image:
    """Return the title of a contact sheet, in one line."""
    font = ImageFont.load_default(size)
    heading = Image.new("RGB", (width, round(size * 1.1)), BACKGROUND)
    line = (_wrapped(title, font, width, 1) or [""])[0]
    ImageDraw.Draw(heading).text((0, round(size * 0.85)), line, INK, font, anchor="ls")
    return heading


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float, most: int
) -> list[str]:
    """Return the text broken into lines no wider than `width`, `most` at the most; words too long for one are cut."""
    lines, line = [], ""
    for word in _drawable(text).split():
        longer = f"{line} {word}".strip()
        if font.getlength(longer) <= width:
            line = longer
            continue
        lines += [line] if line else []
        while len(lines) <= most and font.getlength(word) > width:  # scripts without spaces, too
            fits = _letters_that_fit(word, font, width)
            lines.append(word[:fits])
            word = word[fits:]
        line = word
        if len(lines) > most:
            break
    lines += [line] if line else []
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + " …") > width:
        last = last[:-1].rstrip()
    return [*lines[: most - 1], last + " …"]


def _letters_that_fit(word: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> int:
    """Return how many of the word's first letters are no wider than `width`, at least 1."""
    return max(1, bisect_right(range(len(word)), width, key=lambda count: font.getlength(word[:count])) - 1)


def _drawable(text: str) -> str:
    """Return the text in the letters of Pillow's own font, which has plain ASCII and little else: é as e, ß as ss."""
    bare = unicodedata.normalize("NFKD", text.translate(STAND_INS))
    return "".join(letter for letter in bare if not unicodedata.combining(letter))

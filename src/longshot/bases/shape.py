"""What a pretrained base costs, from its config alone: nothing is downloaded, nothing is allocated.

A `Shape` answers what `sample.forecast` asks of any base: parameters, FLOPs, activations, bytes of keys and values. Its
formulas are held against torch's FLOP counter and its memory profiler on small networks (tests/bases/test_shape.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from longshot.bases.base import Spec
from longshot.bases.hub import Folder, limits_of
from longshot.bases.single import check_file, contents
from longshot.errors import UserError
from longshot.layout import GLOBAL, Group, Layout, Span, Visibility
from longshot.lint import Limits
from longshot.model.cost import CALLS_A_BLOCK, Work, attended_pairs

# Gemma 3 12B with LTX-2's connectors, and LTX-2's video VAE.
TEXT_LTX, VAE_LTX = 13_634_038_592, 1_222_479_857


@dataclass(frozen=True)
class Shape:
    """The sizes of a pretrained base. cross: text is cross-attended, else it takes part in self-attention.

    text_rows: text rows that every shot pays for, where the network pads to a fixed number. others: parameters of the text
    encoders and of the VAE. itemsize: bytes of a weight and of an activation. narrow: how many of the parameters, all in
    blocks, `economy` keeps in a byte each where it is asked to; narrow_ends: how many more of them outside, in fp8; is_narrow:
    whether it is; has_scales: with a scale and a zero point a row, and whole biases (int8). threads: of the CPU that attends,
    whose kernel keeps a tile of scores a thread; 0 elsewhere. table: numbers in a token's table of rotation, where heads turn at
    speeds of their own; 0 where all turn like one. own_table: numbers in those that such a network makes for itself. held: how
    many arrays of the stream its blocks keep beside those that Wan's keep. rows: of all matrices in `narrow`. stored: bytes of
    the transformer in its blocks and outside, where it comes out of a GGUF and stays as narrow as it is there. networks: how many
    transformers of these sizes there are, of which one computes.
    """

    spec: Spec
    cross: bool
    layers: int
    heads: int
    head_dim: int
    mlp: int
    text_dim: int
    text_rows: int
    parameters: int
    others: tuple[int, int]
    itemsize: int = 2
    refiner_layers: int = 0
    narrow: int = 0
    narrow_ends: int = 0
    is_narrow: bool = False
    has_scales: bool = False
    threads: int = 0
    table: int = 0
    own_table: int = 0
    held: int = 0
    rows: int = 0
    stored: tuple[int, int] | None = None
    networks: int = 1

    @property
    def width(self) -> int:
        return self.heads * self.head_dim

    @property
    def weight_bytes(self) -> int:
        """All networks at once. The VAE is kept in fp32."""
        text, vae = self.others
        return self.networks * self.network_bytes + text * self.itemsize + vae * 4

    @property
    def network_bytes(self) -> int:
        """One transformer, as its weights are kept."""
        if self.stored:
            return sum(self.stored)
        narrowed = (self.narrow + (0 if self.has_scales else self.narrow_ends)) * (self.itemsize - 1)
        scales = self.rows * 2 * self.itemsize if self.has_scales else 0
        return self.parameters * self.itemsize - (narrowed if self.is_narrow else 0) + scales

    @property
    def offloaded_bytes(self) -> int:
        """What is on the device at once where weights wait on the CPU: two blocks, and what lies outside of blocks."""
        if self.stored:
            return self.stored[1] + 2 * self.stored[0] // self.layers
        outside = (self.parameters - self.narrow) * self.itemsize
        return outside + 2 * self.narrow * (1 if self.is_narrow else self.itemsize) // self.layers

    @property
    def largest_bytes(self) -> int:
        """What is on the device at once where whole networks take turns there."""
        text, vae = self.others
        return max(self.network_bytes, text * self.itemsize, vae * 4)

    def kv_tokens(self, group: Group) -> int:
        """Tokens of a group whose keys and values are remembered."""
        return group.video if self.cross else group.tokens

    def kv_bytes(self, tokens: int) -> int:
        return 2 * self.layers * tokens * self.width * self.itemsize

    def shot_bytes(self, group: Group) -> int:
        """Keys and values of one shot, one branch of guidance."""
        return self.kv_bytes(self.kv_tokens(group))

    def _scenes(self, layout: Layout) -> list[Layout]:
        scenes = [scene for scene in layout.one_by_one() if scene.groups]
        if self.cross:
            if any(g.shot == GLOBAL for g in layout.groups):
                raise ValueError("a global prompt has no tokens of its own here")
            scenes = [scene.without_text() for scene in scenes]
        return scenes

    def _batch(self, scene: Layout) -> tuple[int, int, int]:
        """(shots, video rows, text rows in self-attention) of the padded batch of one scene."""
        shots = len(scene.groups)
        box = np.prod([max(g.grid[axis] for g in scene.groups) for axis in range(3)])
        text = 0 if self.cross else shots * max(g.text for g in scene.groups)
        return shots, shots * int(box), text

    def forward_work(self, layout: Layout, visibility: Visibility) -> Work:
        """One pass over a layout, prompts encoded: every scene in turn, each padded to its largest shot."""
        return sum((self._scene_work(scene, visibility) for scene in self._scenes(layout)), Work())

    def _scene_work(self, scene: Layout, visibility: Visibility) -> Work:
        width, mlp = self.width, self.mlp
        shots, video, text = self._batch(scene)
        rows = video + text
        matmul = 2 * rows * (4 * width * width + 2 * width * mlp)
        attention = 4 * width * attended_pairs(scene, visibility)
        if self.cross:
            matmul += 2 * video * 2 * width * width + 2 * shots * self.text_rows * 2 * width * width
            attention += 4 * width * video * self.text_rows
        else:
            matmul += 2 * shots * 2 * width * 6 * width  # modulation of both streams
        ends = 2 * video * width * 2 * self.spec.channels
        words = shots * (self.text_rows if self.cross else 0) + text
        ends += 2 * words * width * (self.text_dim + width)
        refined = self.refiner_layers * 2 * text * 12 * width * width
        return Work(
            matmul=self.layers * matmul + ends + refined,
            attention=self.layers * attention,
            traffic=self.layers * 40 * rows * width * 4,
            calls=self.layers * CALLS_A_BLOCK,
        )

    def text_work(self, lengths: Sequence[int]) -> Work:
        """The text encoder over prompts of these lengths, each padded as the pipeline pads it."""
        rows = sum(max(n, self.text_rows) for n in lengths)
        return Work(matmul=2 * rows * self.others[0])

    def activation_bytes(self, layout: Layout, visibility: Visibility = "causal") -> int:
        """Bytes alive at the peak of a pass without gradients: the scenes run one after the other, so of the largest one."""
        return max((self._scene_bytes(scene, visibility) for scene in self._scenes(layout)), default=0)

    def _scene_bytes(self, scene: Layout, visibility: Visibility) -> int:
        """What is alive at once in each stage of a block, array by array as torch's profiler lists them; the largest stage, and
        what the pass keeps beside: its latents and texts, tables of rotation, modulation."""
        shots, video, text = self._batch(scene)
        size, width, past = self.itemsize, self.width, len(scene.keys) - len(scene.queries)
        rows, keys = video + text, video + text + past
        V, R, X, P, K = (n * width * size for n in (video, rows, text, past, keys))
        joined = 2 * P + 2 * K if past else 0  # a layer's cache, and it with the new rows
        turned = 8 * keys * width  # in fp32, a half of every head at a time
        hidden = 2 * max(video, text) * self.mlp * size  # before and after the activation
        wide = size + 2 if self.stored else size  # a GGUF's weights come in half precision first
        widened = width * self.mlp * wide if self.is_narrow or self.stored else 0  # the one layer that runs
        blocks = scene.blocks(visibility)
        scores = max((self._scores(_length(q), _length(k)) for q, k in blocks), default=0)
        turns = (rows + (keys if past else 0)) * (self.table or self.head_dim)
        own = video * self.own_table if self.own_table else 2 * video // shots * self.head_dim
        tables = 4 * (turns + own)
        kept = tables + 12 * shots * width * 4
        ragged = (
            2 * V if len({g.grid for g in scene.groups}) > 1 else 0
        )  # rows without padding, and with it again
        if self.cross:
            words = shots * self.text_rows
            W = words * width * size
            kept += video * self.spec.channels * size + words * self.text_dim * size + W
            stages = (
                6 * V + joined + turned + ragged,
                (7 if past else 8) * V + joined + scores + ragged,
                9 * V if len(blocks) > 1 and not past else 0,
                (5 + self.held) * V + 4 * W,  # the words' keys are normalised
                (6 + self.held) * V + 2 * W + self._scores(video // shots, self.text_rows),
                (4 + self.held) * V + hidden + widened,
            )
        else:
            kept += (4 * self.spec.channels + 2) * video * size + 5 * X + text * self.text_dim * size
            around = (5 if past else 7) * R + joined + 2 * V
            stages = (around + turned, around + scores, 4 * V + 2 * X + hidden + widened)
        return int(max(stages) + kept)

    def _scores(self, queries: int, keys: int) -> int:
        """Bytes that torch's attention on a CPU works in: a tile of queries by keys a thread."""
        tall = min(queries, 256 if queries >= 768 else 64 if queries >= 192 else 32)
        return self.threads * tall * (min(keys, 512) + 2 + self.head_dim) * 4


def _length(span: Span) -> int:
    return span.stop - span.start


def shape_of(folder: Folder) -> Shape:
    """The shape of a pipeline on disk, from its configs; parameters of its encoders from the sizes of their files."""
    network = folder.config("transformer")
    try:
        if folder.pipeline == "WanPipeline":
            from longshot.bases.wan import TEXT_ROWS, spec_of

            shape = wan_shape(spec_of(folder), network, TEXT_ROWS)
        elif folder.pipeline == "LTX2Pipeline":
            from longshot.bases.ltx2 import spec_of

            shape = ltx2_shape(spec_of(folder), network)
        else:
            from longshot.bases.hunyuan15 import spec_of

            shape = hunyuan15_shape(spec_of(folder), network)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{folder.path}: its transformer's config can't be read ({error!r})") from error
    text = _stored(folder, "text_encoder", "text_encoder_2", "connectors")
    vae = _stored(folder, "vae")
    return replace(shape, others=(text, vae)) if text else shape


def with_file(shape: Shape, file: Path) -> Shape:
    """The shape of a base whose transformer comes out of one file. Only the file's header is read.

    A safetensors file's weights are loaded in the dtype that the base runs in. Raises UserError for a file that can't be that
    transformer's, by the count of its numbers.
    """
    check_file(file)
    tensors = contents(file)
    count = sum(tensor.numbers for tensor in tensors)
    if count != shape.parameters:
        raise UserError(
            f"{file}: holds {count:,} numbers; the transformer of {shape.spec.name} has {shape.parameters:,}: it is another one"
        )
    if all(tensor.bytes is None for tensor in tensors):
        return shape
    stored = [0, 0]
    for tensor in tensors:
        size = tensor.numbers * shape.itemsize if tensor.bytes is None else tensor.bytes
        stored["blocks." not in tensor.name] += size
    return replace(shape, stored=(stored[0], stored[1]))


def _stored(folder: Folder, *parts: str) -> int:
    """Parameters in the safetensors files of some parts, read from their headers; 0 where only configs were fetched."""
    from safetensors import safe_open

    total = 0
    for part in parts:
        for file in sorted((folder.path / part).glob("*.safetensors")):
            with safe_open(file, "pt") as tensors:
                names = tensors.keys()
                total += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in names)
    return total


def wan_shape(
    spec: Spec, c: dict, text_rows: int, others: tuple[int, int] = (5_680_910_336, 704_688_668)
) -> Shape:
    heads, dim, mlp, layers, text = (
        int(c[key])
        for key in ("num_attention_heads", "attention_head_dim", "ffn_dim", "num_layers", "text_dim")
    )
    width, time = heads * dim, int(c.get("freq_dim", 256))
    attention = 4 * (width * width + width) + 2 * width
    block = 2 * attention + (2 * width if c.get("cross_attn_norm", True) else 0)
    block += 2 * width * mlp + mlp + width + 6 * width
    patch = int(np.prod(c["patch_size"]))
    ends = width * int(c["in_channels"]) * patch + width + (width + 1) * int(c["out_channels"]) * patch
    embed = (time + width + 2) * width + (width + 1) * 6 * width + (text + width + 2) * width
    return Shape(
        spec=spec,
        cross=True,
        layers=layers,
        heads=heads,
        head_dim=dim,
        mlp=mlp,
        text_dim=text,
        text_rows=text_rows,
        parameters=layers * block + ends + embed + 2 * width,
        others=others,
        narrow=layers * (8 * (width + 1) * width + 2 * width * mlp + mlp + width),
        narrow_ends=(width + 1) * int(c["out_channels"]) * patch,
        rows=layers * (9 * width + mlp),
    )


def hunyuan15_shape(
    spec: Spec, c: dict, parameters: int = 0, others: tuple[int, int] = (7_289_934_080, 1_260_634_115)
) -> Shape:
    heads, dim = int(c["num_attention_heads"]), int(c["attention_head_dim"])
    width, layers, refiner = heads * dim, int(c["num_layers"]), int(c["num_refiner_layers"])
    mlp = int(width * float(c["mlp_ratio"]))
    stream = (
        6 * (width * width + width) + 4 * (width * width + width) + 2 * dim + 2 * width * mlp + mlp + width
    )
    text, glyph, image = (int(c[key]) for key in ("text_embed_dim", "text_embed_2_dim", "image_embed_dim"))
    head = int(c["patch_size_t"]) * int(c["patch_size"]) ** 2
    ends = (int(c["in_channels"]) * head + 1) * width + (width + 1) * head * int(c["out_channels"])
    ends += 2 * (width * width + width) + 3 * width  # last modulation, kinds of text
    ends += (256 + width + 2) * width  # time
    ends += 2 * glyph + (glyph + 1) * 2048 + 2049 * 2048 + 2049 * width
    ends += 2 * image + (image + 1) * image + (image + 1) * width + 2 * width
    refined = (256 + width + 2) * width + (text + width + 2) * width + (text + 1) * width
    refined += refiner * (12 * width * width + 4 * width + 9 * width + 2 * (width * width + width))
    return Shape(
        spec=spec,
        cross=False,
        layers=layers,
        heads=heads,
        head_dim=dim,
        mlp=mlp,
        text_dim=text,
        text_rows=0,
        parameters=parameters or 2 * layers * stream + ends + refined,
        others=others,
        narrow=2 * layers * (4 * (width + 1) * width + 2 * width * mlp + mlp + width),
        rows=layers * (10 * width + 2 * mlp),
        refiner_layers=refiner,
    )


def ltx2_shape(spec: Spec, c: dict, others: tuple[int, int] = (TEXT_LTX, VAE_LTX)) -> Shape:
    """Both streams have weights; only the video stream computes, the other one a token a shot."""
    from longshot.bases.ltx2 import TEXT_ROWS

    def size(key: str, usual: int) -> int:
        return int(c.get(key, usual))

    layers, heads, dim = (
        size("num_layers", 48),
        size("num_attention_heads", 32),
        size("attention_head_dim", 128),
    )
    sound_heads = size("audio_num_attention_heads", 32)
    video, sound = heads * dim, sound_heads * size("audio_attention_head_dim", 64)
    video_words, sound_words = size("cross_attention_dim", 4096), size("audio_cross_attention_dim", 2048)
    is_gated, is_sound_gated = bool(c.get("gated_attn")), bool(c.get("audio_gated_attn"))
    modulated = (bool(c.get("cross_attn_mod")), bool(c.get("audio_cross_attn_mod")))

    def attention(query: int, heads: int, inner: int, key: int, gated: bool) -> int:
        return (query + 1) * inner + 2 * (key + 1) * inner + (inner + 1) * query + gated * (query + 1) * heads

    def mlp(width: int) -> int:
        return 8 * width * width + 5 * width

    def embedded(width: int, outputs: int) -> int:  # a noise level, and so many sets of modulation
        return (256 + 1 + width + 1) * width + (width + 1) * outputs * width

    block = tables = ends = 0
    for width, inner, count, words, gated, more, channels, out in (
        (video, video, heads, video_words, is_gated, modulated[0], "in_channels", "out_channels"),
        (
            sound,
            sound,
            sound_heads,
            sound_words,
            is_sound_gated,
            modulated[1],
            "audio_in_channels",
            "audio_out_channels",
        ),
    ):
        sets = 9 if more else 6
        block += attention(width, count, inner, width, gated) + attention(width, count, inner, words, gated)
        block += attention(width, sound_heads, sound, sound + video - width, gated) + mlp(width)
        tables += (
            (sets + 5 + 2 * any(modulated)) * width + 4 * inner + 2 * sound
        )  # with norms of queries and keys
        ends += (
            (size(channels, 128) + 1) * width
            + (width + 1) * int(c.get(out) or size(channels, 128))
            + 2 * width
        )
        ends += embedded(width, sets) + embedded(width, 4) + embedded(width, 1)
        if c.get("use_prompt_embeddings", True):
            ends += (size("caption_channels", 3840) + 1) * width + (width + 1) * width
        if any(modulated) and c.get("use_prompt_adaln_single", True):
            ends += embedded(width, 2)
    words = size("caption_channels", 3840) if c.get("use_prompt_embeddings", True) else video_words
    turned = (
        2 if c.get("rope_type", "interleaved") == "interleaved" else 1
    )  # that kind holds every number twice
    return Shape(
        spec=spec,
        cross=True,
        layers=layers,
        heads=heads,
        head_dim=dim,
        mlp=4 * video,
        text_dim=words,
        text_rows=TEXT_ROWS,
        parameters=layers * (block + tables) + ends,
        others=others,
        narrow=layers * block,
        narrow_ends=ends,
        table=video,
        own_table=turned * (video + sound_words)
        + 6,  # of self-attention, of the joins with sound, and coordinates
        held=1,
        rows=layers * (13 * video + 17 * sound),
    )


def known_shapes() -> dict[str, Shape]:
    """The bases that have a short name, from the sizes they were published with."""
    from longshot.bases import hunyuan15, ltx2, wan

    def of_wan(spec: Spec, heads: int, mlp: int, layers: int, channels: int, vae: int) -> Shape:
        config = {
            "num_attention_heads": heads,
            "attention_head_dim": 128,
            "ffn_dim": mlp,
            "num_layers": layers,
            "text_dim": 4096,
            "patch_size": (1, 2, 2),
            "in_channels": channels,
            "out_channels": channels,
        }
        return wan_shape(spec, config, wan.TEXT_ROWS, (5_680_910_336, vae))

    hunyuan = {
        "num_attention_heads": 16,
        "attention_head_dim": 128,
        "num_layers": 54,
        "num_refiner_layers": 2,
        "mlp_ratio": 4.0,
        "patch_size": 1,
        "patch_size_t": 1,
        "in_channels": 65,
        "out_channels": 32,
        "text_embed_dim": 3584,
        "text_embed_2_dim": 1472,
        "image_embed_dim": 1152,
    }
    shapes = [
        of_wan(wan.WAN22_5B, 24, 14336, 30, 48, 704_688_668),
        of_wan(wan.WAN21_1B, 12, 8960, 30, 16, 126_892_531),
        of_wan(wan.WAN21_14B, 40, 13824, 40, 16, 126_892_531),
        hunyuan15_shape(hunyuan15.HUNYUAN15, hunyuan),
        ltx2_shape(ltx2.LTX2, {}),
    ]
    return {shape.spec.name: shape for shape in shapes}


def load_shape(name: str) -> Shape:
    """The shape of a pretrained base by short name, folder or hub repository; of the last only its configs are fetched."""
    if name in (known := known_shapes()):
        return known[name]
    from longshot.bases import place_of
    from longshot.bases.hub import open_folder
    from longshot.bases.published import entry_of, is_published, spec_over

    if is_published(name):
        entry, _, over = entry_of(name)
        shape = load_shape(over)
        return replace(
            shape, spec=spec_over(entry, shape.spec, entry.name), networks=2 if entry.second else 1
        )

    return shape_of(open_folder(place_of(name), weights=False, name=name))


@dataclass
class Blueprint:
    """What a scene needs of a base to be told as a plan, without its networks. Clips get latents of zeros."""

    spec: Spec

    def limits(self) -> Limits:
        return limits_of(self.spec, self.count)

    @staticmethod
    def count(prompt: str) -> int:
        """About how many tokens a prompt has: English takes some four letters each."""
        return len(prompt) // 4 + 2

    def encode(self, frames: UInt8[np.ndarray, "frames height width 3"]) -> Float[Tensor, "video channels"]:
        grid = self.spec.grid(len(frames), frames.shape[2], frames.shape[1])
        return torch.zeros(int(np.prod(grid)), self.spec.channels)

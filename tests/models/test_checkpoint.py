"""Finding models, and the sentences for those that cannot be found."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from raysgl.models import ModelError, resolve


def test_local_folder(tiny_checkpoint):
    folder = tiny_checkpoint("llama")
    found = resolve(str(folder))
    assert (found.folder, found.weights) == (folder, "safetensors")
    assert [path.name for path in found.files] == ["model.safetensors"]
    assert resolve(str(folder), load_format="dummy").weights == "dummy"
    assert resolve(str(folder), weights=False).files == ()
    assert found.config().architecture == "LlamaForCausalLM"


def test_sharded_weights_follow_the_index(tmp_path):
    names = {"a.weight": "model-1-of-2.safetensors", "b.weight": "model-2-of-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    (tmp_path / "model-1-of-2.safetensors").touch()
    with pytest.raises(ModelError, match="has no model-2-of-2.safetensors"):
        resolve(str(tmp_path))
    (tmp_path / "model-2-of-2.safetensors").touch()
    (tmp_path / "consolidated.safetensors").touch()
    assert [path.name for path in resolve(str(tmp_path)).files] == sorted(names.values())


def test_package_is_found_without_being_imported(tmp_path, monkeypatch):
    package = tmp_path / "a_model_package"
    (package / "weights").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "weights" / "model.safetensors").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve("package://a_model_package/weights").folder == package / "weights"
    with pytest.raises(ModelError, match="package 'a_model_package' has no file 'none.gguf'"):
        resolve("package://a_model_package/none.gguf")
    with pytest.raises(ModelError, match="package 'no_such_package' is not installed"):
        resolve("package://no_such_package/x.gguf")


@pytest.mark.parametrize(
    ("model_path", "load_format", "sentence"),
    [
        ("/no/such/folder", "auto", "'/no/such/folder' does not exist"),
        ("./nothing", "auto", "'./nothing' does not exist"),
        ("nothing.gguf", "auto", "'nothing.gguf' does not exist"),
        ("some-org/some-model", "auto", "neither a path here nor downloaded yet, and the Hugging Face hub cannot be reached"),
    ],
)
def test_what_is_not_there_is_one_sentence(model_path, load_format, sentence):
    with pytest.raises(ModelError, match=sentence) as caught:
        resolve(model_path, load_format=load_format)
    assert "\n" not in str(caught.value)


def test_formats_that_contradict_the_path(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        ModelError, match=r"has no model.safetensors \(it has pytorch_model.bin; raysgl reads safetensors and GGUF\)"
    ):
        resolve(str(tmp_path))
    with pytest.raises(ModelError, match="load_format is gguf, but .* is a folder"):
        resolve(str(tmp_path), load_format="gguf")
    with pytest.raises(ModelError, match="only .gguf files and folders"):
        resolve(str(tmp_path / "pytorch_model.bin"))
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match="load_format is safetensors, but .* is a .gguf file"):
        resolve(str(tmp_path / "x.gguf"), load_format="safetensors")


def test_broken_gguf_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSGL_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "x.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError, match="is not a readable GGUF file"):
        resolve(str(tmp_path / "x.gguf"))
    assert list((tmp_path / "cache" / "gguf").iterdir()) == []


def test_no_torch_is_imported():
    code = "import sys, raysgl.models, raysgl.models.checkpoint, raysgl.models.hf_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

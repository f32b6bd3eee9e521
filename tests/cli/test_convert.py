"""minimind convert: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_adapters import random_adapter
from small_models import logits_of, pack, random_documents, random_model, small_config
from torch import Tensor

from minimind.cli.main import run_verb
from minimind.data.tokenizer import Tokenizer
from minimind.lora.adapter import merge_adapter
from minimind.lora.folder import BaseModel
from minimind.lora.peft_format import save_adapter
from minimind.model.state_dict import load_hf_folder, save_hf_folder
from minimind.model.transformer import Transformer
from minimind.samples.text import load_sample_tokenizer

(IDS,) = random_documents([30])


def convert(source: Path, output: Path, *flags: str) -> int:
    """Gives the exit status."""
    argv = ["--input", str(source), "--to", "hf", "--output", str(output), *flags]
    return run_verb("convert", argv)


@pytest.fixture
def model() -> Transformer:
    vocab = load_sample_tokenizer().vocab_size
    return random_model(small_config(vocab_size=vocab)).eval()


@pytest.fixture
def run_folder(tmp_path: Path, model: Transformer) -> Path:
    """A run's folder: `best` is the model, `latest` another one."""
    checkpoints = tmp_path / "run" / "checkpoints"
    other = random_model(model.config, seed=9)
    for step, saved in (("step-00000002", model), ("step-00000004", other)):
        folder = checkpoints / step / "model"
        weights = {name: p.detach() for name, p in saved.named_parameters()}
        save_hf_folder(folder, model.config, weights, torch.float32)
        load_sample_tokenizer().save(folder)
        (checkpoints / step / "meta.json").write_text("{}")
        (checkpoints / step / "engine").mkdir()
    (checkpoints / "best").symlink_to("step-00000002")
    (checkpoints / "latest").symlink_to("step-00000004")
    return tmp_path / "run"


def transformers_logits(folder: Path) -> Tensor:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    found, info = AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype="float32"
    )
    assert not any(info.values()), info
    text = "6 + 9 = 15，你好"
    theirs = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert theirs == load_sample_tokenizer().encode(text)
    with torch.no_grad():
        return found.eval()(torch.tensor([IDS])).logits[0]


def own_logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return logits_of(model, pack([[IDS]]))


def test_the_folder_one_stands_in_may_be_the_output(
    run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert convert(run_folder, Path(".")) == 0
    assert (tmp_path / "here" / "model.safetensors").exists()


@pytest.mark.parametrize("inside", ["", "checkpoints/best", "checkpoints/step-00000002/model"])
def test_a_run_a_checkpoint_or_a_folder_becomes_what_transformers_loads(
    run_folder: Path, tmp_path: Path, model: Transformer, inside: str
):
    output = tmp_path / "deep" / "out"
    assert convert(run_folder / inside, output) == 0
    torch.testing.assert_close(transformers_logits(output), own_logits(model), atol=2e-5, rtol=1e-4)
    names = {file.name for file in output.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not [file for file in output.parent.iterdir() if file.name.startswith(".")]


@pytest.mark.parametrize("brings_tokenizer", [True, False])
def test_an_adapter_comes_out_merged(
    run_folder: Path,
    tmp_path: Path,
    model: Transformer,
    capsys: pytest.CaptureFixture[str],
    brings_tokenizer: bool,
):
    """From a run that trained it; its own files stay behind. PEFT writes no tokenizer: it is the
    base's then."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    checkpoint = tmp_path / "tuned" / "checkpoints" / "latest"
    adapter = random_adapter(model.config)
    base = BaseModel.of(run_folder / "checkpoints" / "best" / "model")
    save_adapter(checkpoint / "adapter", model.config, adapter, base)
    if brings_tokenizer:
        load_sample_tokenizer().save(checkpoint / "adapter")
    assert convert(tmp_path / "tuned", tmp_path / "out") == 0
    assert "the adapter was merged into its base" in capsys.readouterr().out
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert not any(name.startswith("adapter") for name in names)
    found = Tokenizer.load(tmp_path / "out")
    assert found.fingerprint == load_sample_tokenizer().fingerprint
    unmerged = own_logits(model)
    model.load_named(merge_adapter(model.config, before, adapter, "here"))
    merged = own_logits(model)
    assert (merged - unmerged).abs().max() > 0.1
    torch.testing.assert_close(transformers_logits(tmp_path / "out"), merged, atol=2e-5, rtol=1e-4)


def test_a_run_without_validation_gives_its_latest(
    run_folder: Path, tmp_path: Path, model: Transformer
):
    (run_folder / "checkpoints" / "best").unlink()
    assert convert(run_folder, tmp_path / "out") == 0
    torch.testing.assert_close(
        transformers_logits(tmp_path / "out"),
        own_logits(random_model(model.config, seed=9).eval()),
        atol=2e-5,
        rtol=1e-4,
    )


@pytest.mark.parametrize(("flag", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_the_dtype_of_the_weights(
    run_folder: Path,
    tmp_path: Path,
    model: Transformer,
    flag: str,
    dtype: torch.dtype,
):
    assert convert(run_folder, tmp_path / "out", "--dtype", flag) == 0
    config, weights = load_hf_folder(tmp_path / "out")
    assert config == model.config
    for name, parameter in model.named_parameters():
        assert torch.equal(weights[name], parameter.detach().to(dtype))
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    assert values["dtype"] == str(dtype).removeprefix("torch.")


def test_shards_become_one_file(run_folder: Path, tmp_path: Path, model: Transformer):
    folder = run_folder / "checkpoints" / "best" / "model"
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    half = len(tensors) // 2
    weight_map = {}
    for number, names in enumerate((list(tensors)[:half], list(tensors)[half:]), 1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = json.dumps({"metadata": {}, "weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    assert convert(folder, tmp_path / "out") == 0
    names = sorted(file.name for file in (tmp_path / "out").iterdir())
    assert [name for name in names if "safetensors" in name] == ["model.safetensors"]
    torch.testing.assert_close(
        transformers_logits(tmp_path / "out"), own_logits(model), atol=2e-5, rtol=1e-4
    )


def test_nothing_is_overwritten(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out"
    output.mkdir()
    (output / "mine.txt").write_text("precious")
    assert convert(run_folder, output) == 2
    assert [file.name for file in output.iterdir()] == ["mine.txt"]
    assert "exists already" in capsys.readouterr().err
    assert convert(run_folder, output / "mine.txt") == 2
    assert (output / "mine.txt").read_text() == "precious"
    best = run_folder / "checkpoints" / "best" / "model"
    assert convert(best, best) == 2


def test_a_wrong_input_is_named(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    output = tmp_path / "out"
    for source in (tmp_path / "nowhere", tmp_path):
        assert convert(source, output) == 2
        assert "not a model that can be read here" in capsys.readouterr().err
    weights = run_folder / "checkpoints" / "best" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert convert(run_folder, output) == 2
    assert "not a readable safetensors file" in capsys.readouterr().err
    assert not output.exists()


def test_an_output_that_cannot_be_written_leaves_nothing(
    run_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "file").write_text("")
    assert convert(run_folder, tmp_path / "file" / "out") == 2
    assert "cannot be written" in capsys.readouterr().err

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copy2", full)
    assert convert(run_folder, tmp_path / "out") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert not [file for file in tmp_path.iterdir() if "unfinished" in file.name]


@pytest.mark.parametrize(
    "argv",
    [[], ["--input", "a"], ["--input", "a", "--to", "tape", "--output", "b"], ["--no_such"]],
)
def test_bad_usage_exits_with_2(argv: list[str]):
    with pytest.raises(SystemExit) as caught:
        run_verb("convert", argv)
    assert caught.value.code == 2

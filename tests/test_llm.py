"""The Python API: what `LLM` says is what chat and completion say elsewhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from small_adapters import random_adapter
from small_folders import small_folder

import minimind
from minimind.chat.local import LocalChat
from minimind.chat.session import ChatOptions
from minimind.errors import CheckpointError, ConfigError
from minimind.inference.answer_parser import Content
from minimind.inference.generate import generate_text
from minimind.inference.load import load_model
from minimind.inference.request import Delta
from minimind.inference.sampling import SamplingParams
from minimind.llm import LLM
from minimind.lora.folder import BaseModel, load_folder_config
from minimind.lora.peft_format import save_adapter
from minimind.samples.text import load_sample_tokenizer

PROMPTS = ["6 + 9 =", "塔恩的房子", "The river of Lumor is called the", "a", ""]
QUESTION = "What is 6 plus 9?"
WARM = {"temperature": 0.8, "top_p": 0.9, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_folder(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="module")
def adapter(folder: Path) -> Path:
    config = load_folder_config(folder)
    path = folder.parent / "tuned"
    save_adapter(path, config, random_adapter(config), BaseModel.of(folder))
    load_sample_tokenizer().save(path)
    return path


@pytest.fixture(scope="module")
def llm(folder: Path) -> LLM:
    return LLM(folder, dtype="fp32", max_batch=4)


def running(llm: LLM) -> int:
    stats = llm._engine.stats
    return stats.running + stats.waiting


def test_it_is_the_packages_own_name(llm: LLM) -> None:
    assert minimind.LLM is LLM
    assert {"LLM", "train", "__version__"} <= set(dir(minimind))
    with pytest.raises(AttributeError, match="'no_such'"):
        _ = minimind.no_such  # pyright: ignore[reportAttributeAccessIssue]


def test_the_package_imports_without_pytorch() -> None:
    code = "import minimind, minimind.cli.main, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("sampling", [{}, WARM])
def test_generate_is_generate_text_for_each_prompt(llm: LLM, folder: Path, sampling) -> None:
    model, tokenizer = load_model(folder)
    params = SamplingParams(max_new_tokens=12, **sampling)
    expected = [generate_text(model, tokenizer, prompt, params) for prompt in PROMPTS]
    assert llm.generate(PROMPTS, max_new_tokens=12, **sampling) == expected
    one_by_one = [llm.generate(prompt, max_new_tokens=12, **sampling) for prompt in PROMPTS]
    assert one_by_one == [[text] for text in expected]
    assert llm.generate([]) == []


@pytest.mark.parametrize("sampling", [{"temperature": 0.0}, WARM])
@pytest.mark.parametrize("thinking", [False, True])
def test_chat_is_the_terminals_chat(llm: LLM, folder: Path, sampling, thinking: bool) -> None:
    local = LocalChat(*load_model(folder))
    options = ChatOptions(thinking=thinking, max_new_tokens=24, **{"top_p": 1.0, **sampling})
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi"},
        {"role": "user", "content": QUESTION},
    ]
    parts = local.answer(messages, options)
    expected = "".join(part.text for part in parts if isinstance(part, Content))
    found = llm.chat(messages, thinking=thinking, max_new_tokens=24, **sampling)
    assert found == expected
    assert "".join(llm.stream(messages, thinking=thinking, max_new_tokens=24, **sampling)) == found


def test_a_text_is_a_users_turn(llm: LLM) -> None:
    turns = [{"role": "user", "content": QUESTION}]
    assert llm.chat(QUESTION, max_new_tokens=16) == llm.chat(turns, max_new_tokens=16) != ""


def test_a_form_holds_the_text(llm: LLM) -> None:
    schema = {"type": "object", "properties": {"a": {"enum": [1, "二"]}}, "required": ["a"]}
    for temperature in (0, 1):
        for thinking in (False, True):
            given = {"temperature": temperature, "seed": 2, "max_new_tokens": 120}
            # The end of the thought is made likely enough to come.
            bias = {llm.tokenizer.added_ids["</think>"]: 4.0}
            answer = llm.chat(
                QUESTION, thinking=thinking, json_schema=schema, logit_bias=bias, **given
            )
            assert json.loads(answer)["a"] in (1, "二")
    assert set(llm.generate(PROMPTS, choice=["yes", "no"], temperature=1)) <= {"yes", "no"}
    (number,) = llm.generate("a", regex=r"\d{3}")
    assert len(number) == 3
    assert llm.generate("a", grammar='root ::= "a" "b"') == ["ab"]


def test_stop_strings_end_the_text(llm: LLM) -> None:
    (whole,) = llm.generate("6 + 9", max_new_tokens=20)
    stop = whole[5:8]
    expected = [whole[: whole.index(stop)]]
    assert llm.generate("6 + 9", max_new_tokens=20, stop=stop) == expected
    assert llm.generate("6 + 9", max_new_tokens=20, stop=["\0", stop]) == expected


def test_what_is_not_given_fits_the_context(llm: LLM) -> None:
    """256 tokens here, of which a chat's 512 would be too many."""
    assert llm.chat(QUESTION)
    with pytest.raises(ConfigError, match="do not fit the model's context of 256"):
        llm.chat(QUESTION, max_new_tokens=512)


def test_streams_read_in_turns_and_threads_share_the_batch(llm: LLM) -> None:
    questions = [f"What is {n} plus 9?" for n in range(6)]
    alone = [llm.chat(question, max_new_tokens=20) for question in questions]
    streams = [llm.stream(question, max_new_tokens=20) for question in questions]
    texts = [""] * len(streams)
    open_streams = dict(enumerate(streams))
    while open_streams:
        for index in list(open_streams):
            piece = next(open_streams[index], None)
            if piece is None:
                del open_streams[index]
            else:
                texts[index] += piece
    assert texts == alone
    with ThreadPoolExecutor(6) as threads:
        found = threads.map(lambda question: llm.chat(question, max_new_tokens=20), questions)
    assert list(found) == alone
    assert running(llm) == 0


def test_an_abandoned_stream_frees_its_slot(llm: LLM) -> None:
    stream = llm.stream(QUESTION, max_new_tokens=100)
    next(stream)
    assert running(llm) == 1
    stream.close()
    assert running(llm) == 0
    for _ in llm.stream(QUESTION, max_new_tokens=100):
        break
    assert running(llm) == 0
    assert not llm._inboxes
    llm.stream(QUESTION)  # never begun
    assert running(llm) == 0


def test_a_stream_abandoned_inside_a_step_is_freed_by_the_next(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As garbage collection may have it."""
    stream = llm.stream(QUESTION, max_new_tokens=100)
    next(stream)
    step = llm._engine.step

    def step_and_close() -> list[Delta]:
        stream.close()
        return step()

    monkeypatch.setattr(llm._engine, "step", step_and_close)
    assert llm.generate("a", max_new_tokens=3) == llm.generate("a", max_new_tokens=3)
    assert running(llm) == 0


def test_a_generation_that_fails_is_an_error(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(llm._engine._runner, "launch", fail)
        with pytest.raises(RuntimeError, match="generation failed"):
            llm.generate(PROMPTS)
    assert running(llm) == 0
    assert llm.chat(QUESTION, max_new_tokens=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.chat("q", temprature=1), r"did you mean temperature\?\); they are choice"),
        (lambda llm: llm.generate("q", regex="a", choice=["b"]), "regex and choice exclude each"),
        (lambda llm: llm.chat("q", json_schema={"not": {}}), 'Unimplemented keys: \\["not"'),
        (
            lambda llm: llm.chat("q", json_schema="{}"),
            "json_schema is '{}', which is empty or of a",
        ),
        (lambda llm: llm.chat("q", logit_bias={99999: 1.0}), "the token 99999"),
        (
            lambda llm: llm.stream("q", heat=1),
            "heat is no sampling option; they are choice, frequency_",
        ),
        (lambda llm: llm.generate("q", logprobs=3), "logprobs is no sampling option"),
        (lambda llm: llm.generate("q", temperature=-1), "temperature is -1; it must be at least 0"),
        (lambda llm: llm.generate("q", top_p="high"), "has a wrong type"),
        (lambda llm: llm.generate("q", stop=3), "has a wrong type"),
        (lambda llm: llm.generate(["q", 3]), "prompt 2 is 3; it must be a string"),
        (lambda llm: llm.generate("\ud800"), "half a character"),
        (lambda llm: llm.generate(["q", "word " * 300]), "prompt 2 has .* shorten it"),
        (lambda llm: llm.stream("word " * 300), "the conversation has .* shorten it"),
        (lambda llm: llm.stream([]), "the conversation is empty"),
        (lambda llm: llm.stream([{"role": "bot"}]), 'the role is "bot"; it must be one of system'),
        (lambda llm: llm.generate("q", adapter="poet"), "adapter 'poet' is not loaded"),
    ],
)
def test_what_cannot_be_answered_is_said_before_anything_runs(
    llm: LLM, call: Callable[[LLM], object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        call(llm)
    assert running(llm) == 0


def test_runs_checkpoints_and_adapters(folder: Path, adapter: Path, tmp_path: Path) -> None:
    options = {"dtype": "fp32", "device": "cpu", "max_batch": 2}
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "model").symlink_to(folder)
    (checkpoint.parent / "latest").symlink_to(checkpoint.name)
    expected = LLM(folder, **options).generate(PROMPTS, max_new_tokens=8)
    for place in (str(tmp_path / "run"), checkpoint):
        assert LLM(place, **options).generate(PROMPTS, max_new_tokens=8) == expected
    merged = LLM(adapter, **options).generate(PROMPTS, max_new_tokens=8)
    assert merged != expected
    both = LLM(folder, adapters={"poet": str(adapter)}, **options)
    assert both.generate(PROMPTS, adapter="poet", max_new_tokens=8) == merged
    assert both.generate(PROMPTS, max_new_tokens=8) == expected


def test_an_adapter_without_a_tokenizer_is_read_with_its_models(
    folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """As PEFT writes it."""
    bare = shutil.copytree(adapter, tmp_path / "bare")
    for file in bare.glob("tokenizer*"):
        file.unlink()
    prompts, options = PROMPTS[:2], {"dtype": "fp32", "device": "cpu", "max_batch": 2}
    expected = LLM(adapter, **options).generate(prompts, max_new_tokens=8)
    assert LLM(bare, **options).generate(prompts, max_new_tokens=8) == expected
    beside = LLM(folder, adapters={"bare": str(bare)}, **options)
    assert beside.generate(prompts, adapter="bare", max_new_tokens=8) == expected


@pytest.mark.parametrize(
    ("role", "message"),
    [
        ({"eos_token": "<|endoftext|>"}, r"ends a document with token 2 .* with token 0 "),
        ({"bos_token": "<|endoftext|>"}, r"begins a document with token 1 .* with token 0 "),
    ],
)
def test_an_adapter_of_a_tokenizer_that_begins_or_ends_otherwise_is_refused(
    folder: Path, adapter: Path, tmp_path: Path, role: dict[str, str], message: str
) -> None:
    """It was never trained on what the model's own tokenizer puts there."""
    other = shutil.copytree(adapter, tmp_path / "other")
    config = json.loads((other / "tokenizer_config.json").read_text(encoding="utf-8"))
    (other / "tokenizer_config.json").write_text(json.dumps(config | role), encoding="utf-8")
    with pytest.raises(ConfigError, match=message + r".* give its folder as the checkpoint"):
        LLM(folder, adapters={"other": str(other)}, dtype="fp32", device="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not known; use auto, fp32, bf16, fp16"),
        ({"device": "toaster"}, "device 'toaster' is not known"),
        ({"max_batch": 0}, "max_batch is 0"),
    ],
)
def test_a_model_that_cannot_be_loaded_so(folder: Path, options, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LLM(folder, **options)


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="neither a run's folder"):
        LLM(str(tmp_path))

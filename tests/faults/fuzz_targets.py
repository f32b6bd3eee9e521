"""Names what `fuzz.py` feeds: for each reader of what others made, its input and how it is read."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuzz_values import changed, changed_bytes, changed_json
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

LIMIT_S = 45.0
"""The time of a case: above the limits of worker processes, even on a busy machine."""
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


@dataclass(frozen=True)
class Target:
    """Is one reader: the inputs it is given, and a function that gives it one. That may raise a
    MiniMindError and nothing else."""

    inputs: SearchStrategy[Any]
    feed: Callable[[Any], object]


@contextlib.contextmanager
def copied(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """Yields a copy of a folder with these contents in it."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(shutil.copytree(folder, Path(place) / "it", symlinks=True))
        for name, content in files.items():
            (copy / name).write_bytes(content)
        yield copy


def one_file_changed(folder: Path, *names: str) -> SearchStrategy[dict[str, bytes]]:
    """Gives one of the files with changes, by its name."""

    def contents(name: str) -> SearchStrategy[bytes]:
        content = (folder / name).read_bytes()
        return changed_json(content) if name.endswith(".json") else changed_bytes(content)

    return st.one_of(*(st.fixed_dictionaries({name: contents(name)}) for name in names))


def reading(folder: Path, names: tuple[str, ...], read: Callable[[Path], object]) -> Target:
    """Gives the target that reads a folder of which one file is changed."""

    def feed(files: dict[str, bytes]) -> None:
        with copied(folder, files) as copy:
            read(copy)

    return Target(one_file_changed(folder, *names), feed)


def rows(run: Path, stack: contextlib.ExitStack) -> Target:
    from minimind.data.chat_format import CHAT as CHATS
    from minimind.data.preference_format import PREFERENCE
    from minimind.data.text_format import TEXT
    from minimind.data.token_cache import build_token_cache
    from minimind.samples.text import load_sample_tokenizer

    tokenizer, answers = load_sample_tokenizer(), [CHAT[0], {"role": "assistant", "content": "c"}]
    right = {
        TEXT: {"text": "some words"},
        CHATS: {"conversations": CHAT, "tools": [TOOL], "system": "s"},
        PREFERENCE: {"chosen": CHAT, "rejected": answers},
    }

    def files(format: Any) -> SearchStrategy[Any]:
        row = changed(right[format]).map(lambda value: json.dumps(value).encode())
        lines = st.lists(row, min_size=1, max_size=4)
        content = st.one_of(
            lines.map(b"\n".join),
            lines.map(lambda found: b"[" + b",\n".join(found) + b"]"),
            row.flatmap(changed_bytes),
        )
        return st.tuples(st.just(format), st.sampled_from(["a.jsonl", "a.json", "a.txt"]), content)

    def feed(given: Any) -> None:
        format, name, content = given
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / name
            path.write_bytes(content)
            build_token_cache(
                path, tokenizer, format, cache_dir=place, on_bad_row="skip", progress=False
            )

    return Target(st.one_of(*map(files, right)), feed)


def deepspeed_json(run: Path, stack: contextlib.ExitStack) -> Target:
    from minimind.config.deepspeed_json import SHIPPED
    from minimind.run.run import Run

    files = {path.name: path.read_bytes() for path in SHIPPED.glob("*.json")}

    def feed(content: bytes) -> None:
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "given.json"
            path.write_bytes(content)
            Run.resolve(ds_config=str(path), model="tiny")

    return Target(st.one_of(*map(changed_json, files.values())), feed)


def model_folder(run: Path, stack: contextlib.ExitStack) -> Target:
    from minimind.inference.load import load_model

    folder = run / "checkpoints" / "latest" / "model"
    return reading(folder, ("config.json", "model.safetensors"), load_model)


def tokenizer_folder(run: Path, stack: contextlib.ExitStack) -> Target:
    from minimind.data.chat_encoding import Chat, ChatEncoder
    from minimind.data.tokenizer import Tokenizer

    def read(folder: Path) -> None:
        tokenizer = Tokenizer.load(folder)
        tokenizer.decode(tokenizer.encode("hello <|im_start|> 中文 \ufdd0"))
        ChatEncoder(tokenizer).prompt_ids(Chat([CHAT[0]]))

    folder = run / "checkpoints" / "latest" / "model"
    return reading(folder, ("tokenizer.json", "tokenizer_config.json"), read)


def adapter_folder(run: Path, stack: contextlib.ExitStack) -> Target:
    from small_adapters import random_adapter

    from minimind.lora.folder import BaseModel, load_model_folder
    from minimind.lora.peft_format import save_adapter
    from minimind.model.hf_config import load_hf_config

    folder, base = run / "adapter", run / "checkpoints" / "latest" / "model"
    config = load_hf_config(base)
    save_adapter(folder, config, random_adapter(config), BaseModel.of(base))
    return reading(folder, ("adapter_config.json", "adapter_model.safetensors"), load_model_folder)


def run_folder(run: Path, stack: contextlib.ExitStack) -> Target:
    """A run that is resumed, up to where training would begin."""
    from minimind.run.arguments import parse_arguments
    from minimind.run.run import Run

    def read(folder: Path) -> None:
        flags = ["--resume", "--output_dir", str(folder)]
        resumed = Run.of(parse_arguments(flags))
        resumed.check()
        resumed.describe()

    meta = str((run / "checkpoints" / "latest").resolve().relative_to(run.resolve()) / "meta.json")
    return reading(run, ("run.json", meta), read)


def shards(run: Path, stack: contextlib.ExitStack) -> Target:
    from minimind.interop.readers import open_source

    def read(folder: Path) -> None:
        source = open_source(folder / "engine")
        for name in source.tensors:
            source.tensors[name]

    folder = run / "checkpoints" / "latest"
    files = sorted(str(file.relative_to(folder)) for file in (folder / "engine").rglob("*.pt"))
    return reading(folder, ("meta.json", *files), read)


def gguf_file(run: Path, stack: contextlib.ExitStack) -> Target:
    from minimind.interop.conversion import convert
    from minimind.interop.options import ConvertOptions
    from minimind.interop.readers import open_source

    folder = run / "gguf"
    folder.mkdir()
    model = run / "checkpoints" / "latest" / "model"
    convert(model, "gguf", folder / "a.gguf", ConvertOptions(quantize="q8_0"))

    def read(folder: Path) -> None:
        source = open_source(folder / "a.gguf")
        for name in source.tensors:
            source.tensors[name]

    return reading(folder, ("a.gguf",), read)


def original_folder(run: Path, stack: contextlib.ExitStack) -> Target:
    import torch
    from original_models import DENSE, random_state

    from minimind.interop.readers import open_source

    folder = run / "original"
    folder.mkdir()
    torch.save(random_state(DENSE[0]), folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "minimind", "dim": 32, "n_heads": 8}')

    def read(folder: Path) -> None:
        source = open_source(folder)
        for name in source.tensors:
            source.tensors[name]

    return reading(folder, ("config.json", "pytorch_model.bin"), read)


def url_of_a_server(stack: contextlib.ExitStack) -> str:
    """Runs a server over a random model until the stack is left."""
    from live_servers import random_engine, running_server

    from minimind.samples.text import load_sample_tokenizer
    from minimind.serving.settings import ServerSettings

    tokenizer = load_sample_tokenizer()
    settings = ServerSettings(port=0, max_body_bytes=100_000, max_new_tokens=8)
    engines = {"tiny": random_engine(tokenizer)}
    return stack.enter_context(running_server(engines, tokenizer, settings)).url


def check_answer(path: str, status: int, text: str) -> None:
    assert status < 500, f"{path}: {status} {text[:300]}"


def requests(run: Path, stack: contextlib.ExitStack) -> Target:
    import httpx2 as httpx

    client = httpx.Client(base_url=url_of_a_server(stack), timeout=LIMIT_S)
    base = {"model": "tiny", "max_tokens": 2}
    bodies = {
        "/v1/chat/completions": base | {"messages": CHAT, "tools": [TOOL], "stop": ["a"]},
        "/v1/completions": base | {"prompt": "hello", "logprobs": 1, "echo": True},
        "/v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 2},
        "/v1/embeddings": {"model": "tiny", "input": ["a", "b"]},
        "/tokenize": {"model": "tiny", "messages": CHAT},
    }

    def feed(given: tuple[str, bytes]) -> None:
        path, body = given
        answer = client.post(path, content=body, headers={"Content-Type": "application/json"})
        check_answer(path, answer.status_code, answer.text)

    of_each = (
        st.tuples(st.just(path), changed_json(json.dumps(body).encode()))
        for path, body in bodies.items()
    )
    return Target(st.one_of(*of_each), feed)


def described_calls(run: Path, stack: contextlib.ExitStack) -> Target:
    """Calls that schemathesis makes of the server's own description, right and wrong ones."""
    import schemathesis

    api = schemathesis.openapi.from_url(f"{url_of_a_server(stack)}/openapi.json")
    calls = [found.ok() for found in api.get_all_operations()]
    modes = list(schemathesis.GenerationMode)
    inputs = [
        call.as_strategy(generation_mode=mode)
        for call in calls
        for mode in (modes if call.method.upper() == "POST" else modes[:1])
    ]

    def feed(case: Any) -> None:
        answer = case.call(timeout=LIMIT_S)
        check_answer(case.as_curl_command(), answer.status_code, answer.text)

    return Target(st.one_of(*inputs), feed)


TARGETS: dict[str, Callable[[Path, contextlib.ExitStack], Target]] = {
    "rows": rows,
    "deepspeed_json": deepspeed_json,
    "model_folder": model_folder,
    "tokenizer_folder": tokenizer_folder,
    "adapter_folder": adapter_folder,
    "run_folder": run_folder,
    "shards": shards,
    "gguf_file": gguf_file,
    "original_folder": original_folder,
    "requests": requests,
    "described_calls": described_calls,
}

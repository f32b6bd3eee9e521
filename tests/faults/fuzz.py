"""Feeds mutated files and requests to everything that reads what others made:

    PYTHONPATH=.:kernels:tests python tests/faults/fuzz.py --seconds 600

Each target gets an equal share of the time, in a process of its own. A case fails by an exception
that is no MiniMindError, by an answer of 500 or by taking longer than LIMIT_S. Failing cases are
written into a folder; the exit status is their number, at most 99.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

LIMIT_S = 45.0
"""The time of a case: above the limits of worker processes, even on a busy machine."""
WORDS: list[Any] = [
    None, True, False, 0, -1, 1.5, 1e308, float("nan"), 10**9, 2**63, 10**400, "", "x", "\0",
    "\ud800", "a" * 5000, "../../etc/passwd", "(a+)+$", "{{ 1/0 }}", [], {}, [[]], {"a": {}},
    [1, "a", None], {"type": "Sequence"},
]  # fmt: skip
Case = Callable[[random.Random], None]


def mutated(value: Any, dice: random.Random, depth: int = 0) -> Any:
    """Gives a copy of a JSON value with some part replaced, left out, doubled or nested."""
    if dice.random() < 0.15 or depth > 8:
        return dice.choice(WORDS)
    if isinstance(value, dict) and value:
        key = dice.choice(list(value))
        change = dice.random()
        if change < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if change < 0.2:
            return value | {dice.choice(["x", "", "type", "minimind"]): dice.choice(WORDS)}
        return value | {key: mutated(value[key], dice, depth + 1)}
    if isinstance(value, list) and value:
        at = dice.randrange(len(value))
        if dice.random() < 0.2:
            return value[:at] + value[at + 1 :]
        return [*value[:at], mutated(value[at], dice, depth + 1), *value[at + 1 :]]
    return dice.choice(WORDS)


def mutated_text(text: bytes, dice: random.Random) -> bytes:
    """Gives bytes with some of them changed, cut out or repeated."""
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(text) + 1)
        end = min(len(text), at + dice.randrange(1, 40))
        new = dice.choice([b"", bytes(dice.randrange(256) for _ in range(4)), text[at:end] * 3])
        text = text[:at] + new + text[end:]
    return text


def write_mutated(path: Path, dice: random.Random) -> None:
    """Changes a JSON file by its values or its bytes."""
    before = path.read_bytes()
    if dice.random() < 0.8:
        text = json.dumps(mutated(json.loads(before), dice)).encode()
    else:
        text = mutated_text(before, dice)
    path.write_bytes(text)


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as place:
        yield Path(shutil.copytree(folder, Path(place) / "it"))


def rows_target(folder: Path) -> Case:
    from minimind.data.chat_format import CHAT
    from minimind.data.preference_format import PREFERENCE
    from minimind.data.text_format import TEXT
    from minimind.data.token_cache import build_token_cache
    from minimind.data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tool = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    rows = {
        "text": {"text": "some words"},
        "chat": {"conversations": turns, "tools": tool, "system": "s"},
        "preference": {"chosen": turns, "rejected": [turns[0], {**turns[1], "content": "c"}]},
    }

    def case(dice: random.Random) -> None:
        format = dice.choice([TEXT, CHAT, PREFERENCE])
        lines = [json.dumps(mutated(rows[format.name], dice)).encode() for _ in range(5)]
        lines = [mutated_text(line, dice) if dice.random() < 0.1 else line for line in lines]
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "a.jsonl"
            path.write_bytes(b"\n".join(lines))
            build_token_cache(
                path, tokenizer, format, cache_dir=place, on_bad_row="skip", progress=False
            )

    return case


def deepspeed_target(folder: Path) -> Case:
    from minimind.config.deepspeed_json import SHIPPED
    from minimind.run.run import Run

    files = sorted(SHIPPED.glob("*.json"))

    def case(dice: random.Random) -> None:
        with tempfile.TemporaryDirectory() as place:
            path = Path(shutil.copy(dice.choice(files), place))
            write_mutated(path, dice)
            Run.resolve(ds_config=str(path), model="tiny")

    return case


def model_target(folder: Path) -> Case:
    from minimind.inference.load import load_model

    def case(dice: random.Random) -> None:
        with copied(folder) as copy:
            if dice.random() < 0.7:
                write_mutated(copy / "config.json", dice)
            else:
                path = copy / "model.safetensors"
                path.write_bytes(mutated_text(path.read_bytes(), dice))
            load_model(copy)

    return case


def adapter_target(folder: Path) -> Case:
    from small_adapters import random_adapter

    from minimind.lora.folder import BaseModel, load_model_folder
    from minimind.lora.peft_format import save_adapter
    from minimind.model.hf_config import load_hf_config

    config = load_hf_config(folder)
    adapter = folder.parent / "adapter"
    save_adapter(adapter, config, random_adapter(config), BaseModel.of(folder))

    def case(dice: random.Random) -> None:
        with copied(adapter) as copy:
            write_mutated(copy / "adapter_config.json", dice)
            load_model_folder(copy)

    return case


def tokenizer_target(folder: Path) -> Case:
    from minimind.data.chat_encoding import Chat, ChatEncoder
    from minimind.data.tokenizer import Tokenizer

    def case(dice: random.Random) -> None:
        with copied(folder) as copy:
            write_mutated(copy / dice.choice(["tokenizer.json", "tokenizer_config.json"]), dice)
            tokenizer = Tokenizer.load(copy)
            tokenizer.decode(tokenizer.encode("hello <|im_start|> 中文 \ufdd0"))
            ChatEncoder(tokenizer).prompt_ids(Chat([{"role": "user", "content": "a"}]))

    return case


def server_target(folder: Path) -> Case:
    import httpx
    from live_servers import random_engine, running_server

    from minimind.data.tokenizer import Tokenizer
    from minimind.serving.settings import ServerSettings

    tokenizer = Tokenizer.load(folder)
    settings = ServerSettings(port=0, max_body_bytes=100_000, max_new_tokens=8)
    running = running_server({"tiny": random_engine(tokenizer)}, tokenizer, settings)
    client = httpx.Client(base_url=running.__enter__().url, timeout=LIMIT_S)
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "a"}]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    base = {"model": "tiny", "max_tokens": 2}
    bodies = {
        "/v1/chat/completions": base | {"messages": messages, "tools": [tool], "stop": ["a"]},
        "/v1/completions": base | {"prompt": "hello", "logprobs": 1, "echo": True},
        "/v1/responses": {"model": "tiny", "input": "a", "max_output_tokens": 2},
        "/v1/embeddings": {"model": "tiny", "input": ["a", "b"]},
        "/tokenize": {"model": "tiny", "messages": messages},
    }

    def case(dice: random.Random) -> None:
        path = dice.choice(list(bodies))
        text = json.dumps(mutated(bodies[path], dice)).encode()
        text = mutated_text(text, dice) if dice.random() < 0.1 else text
        answer = client.post(path, content=text, headers={"Content-Type": "application/json"})
        if answer.status_code >= 500:
            raise AssertionError(f"{path} {text[:300]!r}: {answer.status_code} {answer.text[:200]}")

    return case


TARGETS: dict[str, Callable[[Path], Case]] = {
    "rows": rows_target,
    "deepspeed": deepspeed_target,
    "model": model_target,
    "adapter": adapter_target,
    "tokenizer": tokenizer_target,
    "server": server_target,
}


def fuzz(name: str, seconds: float, seed: int, failures: Path) -> None:
    """Runs cases of a target until the time is over, and writes each kind of failure once."""
    from small_folders import small_folder

    from minimind.errors import MiniMindError

    def too_slow(*_: object) -> None:
        raise TimeoutError(f"a case takes longer than {LIMIT_S:g} s")

    logging.disable()
    signal.signal(signal.SIGALRM, too_slow)
    with tempfile.TemporaryDirectory() as place:
        case = TARGETS[name](small_folder(Path(place) / "model"))
        until, number, refused = time.monotonic() + seconds, 0, 0
        while time.monotonic() < until:
            number += 1
            signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
            try:
                case(random.Random(f"{name} {seed} {number}"))
            except MiniMindError:
                refused += 1
            except BaseException as error:
                frames = traceback.extract_tb(error.__traceback__)
                at = f"{Path(frames[-1].filename).stem}-{frames[-1].lineno}"
                file = failures / f"{name}-{type(error).__name__}-{at}.txt"
                if not file.exists():
                    file.write_text(f"{name} {seed} {number}\n{traceback.format_exc()}")
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    print(f"{name}: {number} cases, {refused} refused", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--failures", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args()
    shutil.rmtree(options.failures, ignore_errors=True)
    options.failures.mkdir(parents=True)
    share = options.seconds / len(options.targets)
    for name in options.targets:
        arguments = (name, share, options.seed, options.failures)
        process = get_context("spawn").Process(target=fuzz, args=arguments)
        process.start()
        process.join(share + 2 * LIMIT_S + 60)
        if process.exitcode != 0:
            process.kill()
            end = "hangs" if process.exitcode is None else f"ended with {process.exitcode}"
            (options.failures / f"{name}-process.txt").write_text(end)
    found = sorted(options.failures.iterdir())
    for file in found:
        print(f"{file}: {file.read_text().strip().splitlines()[-1]}")
    return min(len(found), 99)


if __name__ == "__main__":
    sys.exit(main())

"""Tokenises text by byte-level BPE. Text never becomes a special token."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import processors

from minimind.config.json_file import load_json
from minimind.config.spelling import did_you_mean_file
from minimind.config.tags import CALL, END_CALL, END_RESULT, END_THINK, RESULT, THINK
from minimind.data.byte_level_bpe import (
    TOKENIZER_FILE,
    build_bpe,
    byte_alphabet,
    check_text_stays_text,
    panics_as_errors,
)
from minimind.data.text_pieces import split_text
from minimind.data.tokenizer_probe import check_text_parts
from minimind.errors import ConfigError, DataError

TAGS = (CALL, END_CALL, RESULT, END_RESULT, THINK, END_THINK)
"""The tags that assistant turns may spell as tokens; ids 21 to 26 in the project's own
tokenizers."""

_CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"


class Tokenizer:
    """Turns text into ids and back.

    `encode` treats text as data: no text becomes a special or added token. `encode_rendered`
    recognises every added token. Conversations are encoded by data/chat_encoding.py.
    """

    def __init__(self, spec: dict[str, Any], config: dict[str, Any], origin: str) -> None:
        """Takes the contents of tokenizer.json (`spec`) and of tokenizer_config.json with the chat
        template (`config`); `origin` names the tokenizer in messages. Raises DataError."""
        self._spec = spec
        self._config = config
        self.origin = origin
        check_text_parts(spec, byte_alphabet(), origin)
        added = spec.get("added_tokens") or []
        self.added_ids: dict[str, int] = {token["content"]: token["id"] for token in added}
        """The id of each special or added token, by its text."""
        if "" in self.added_ids:
            raise DataError(f"{origin}: {TOKENIZER_FILE} has an added token without a text")
        self._rendered = build_bpe(spec, set(self.added_ids), origin)
        self._plain = build_bpe(spec, set(), origin)
        self.vocab_size = 1 + max(self._rendered.get_vocab().values())
        """One more than the largest id, so that a table of this size has a row for every id."""
        self.special_tokens = _special_tokens(config)
        """The texts of the special tokens that the configuration names, by the names that chat
        templates use: bos_token, eos_token and so on."""
        self.bos_id = self._special_id("bos_token") if "bos_token" in self.special_tokens else None
        """The bos id; None where the tokenizer has none, as Qwen's, and a document begins with its
        text."""
        self.eos_id = self._special_id("eos_token")
        self.pad_id = self._special_id("pad_token", default=self.eos_id)
        self.special_ids = frozenset(token["id"] for token in added if token["special"])
        self.chat_template: str | None = _default_template(config.get("chat_template"))
        check_text_stays_text(self._plain, self.added_ids, origin)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """Loads tokenizer.json, tokenizer_config.json and, if there is one, chat_template.jinja.
        Raises DataError."""
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(
                f"{folder}: no such tokenizer folder{did_you_mean_file(folder)}; "
                "`minimind tokenizer` makes one"
            )
        spec = _read_json(folder / TOKENIZER_FILE)
        config = _read_json(folder / _CONFIG_FILE)
        template = folder / _TEMPLATE_FILE
        try:
            if template.is_file():
                config["chat_template"] = template.read_text("utf-8")
            return cls(spec, config, str(folder))
        except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
            raise DataError(f"{folder}: not the files of a tokenizer: {error!r}") from None

    def save(self, folder: str | Path) -> None:
        """Writes the two files that `load` and `transformers` read."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        spec, config = self.contents()
        for name, content in ((TOKENIZER_FILE, spec), (_CONFIG_FILE, config)):
            text = json.dumps(content, ensure_ascii=False, indent=1) + "\n"
            (folder / name).write_text(text, encoding="utf-8")

    def contents(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Gives the contents of tokenizer.json and of tokenizer_config.json, chat template
        included. With them `transformers` begins a text as `encode_document` does, even if the
        loaded files did otherwise."""
        spec = self._spec
        post_processor = spec.get("post_processor")
        theirs = build_bpe(spec, set(self.added_ids), self.origin, post_processor)
        if theirs.encode("a").ids != self.encode_document("a"):
            spec = {**spec, "post_processor": self._document_template}
        # transformers 5 follows these before the post-processor of tokenizer.json.
        rule = {"add_bos_token": self.bos_id is not None, "add_eos_token": False}
        return spec, {**self._config, **self.special_tokens, **rule}

    @cached_property
    def fingerprint(self) -> str:
        """Identifies everything that decides which ids a text or chat becomes."""
        relevant = {k: v for k, v in self._spec.items() if k not in ("padding", "truncation")}
        relevant["post_processor"] = None  # `encode` takes none, and `save` may write another
        ids = [self.bos_id, self.eos_id, self.pad_id]
        canonical = json.dumps([relevant, ids, self.chat_template], sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=20).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Encodes a text as data, without special or added tokens, bos or eos."""
        return self.encode_batch([text])[0]

    def encode_document(self, text: str) -> list[int]:
        """Encodes the beginning of a document, with bos first if the tokenizer has one. Training,
        completions, evaluation and exported folders all do this."""
        return [*self.document_start, *self.encode(text)]

    @property
    def document_start(self) -> list[int]:
        """Gives the ids that come before a document's text: bos or nothing."""
        return [] if self.bos_id is None else [self.bos_id]

    def least_tokens(self, text: str) -> int:
        """Gives a lower bound of the number of tokens of `text` without encoding it: its bytes over
        the bytes of the longest token."""
        return -(-len(text.encode(errors="replace")) // self._longest_bytes)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Encodes each text as `encode` does, on all cores (RAYON_NUM_THREADS sets their
        number)."""
        pieces = [split_text(text) for text in texts]
        flat = [piece for text in pieces for piece in text]
        # The fast method leaves out character offsets, which are not used here.
        with panics_as_errors(self.origin):
            encoded = iter(self._plain.encode_batch_fast(flat, add_special_tokens=False))
        return [
            next(encoded).ids if len(text) == 1 else [i for _ in text for i in next(encoded).ids]
            for text in pieces
        ]

    def encode_rendered(self, text: str) -> list[int]:
        """Encodes a rendered chat template; every added token is recognised."""
        with panics_as_errors(self.origin):
            return self._rendered.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Decodes `ids`. Bytes that are not UTF-8 become U+FFFD. An id beyond the vocabulary, which
        a model with a larger head may sample, gives no text."""
        return self.token_bytes(ids, skip_special).decode("utf-8", errors="replace")

    def token_bytes(self, ids: Iterable[int], skip_special: bool = True) -> bytes:
        table = self._bytes_of_id
        hidden = self.special_ids if skip_special else frozenset()
        return b"".join(table.get(i, b"") for i in map(int, ids) if i not in hidden)

    def stream_decoder(self, skip_special: bool = True) -> StreamDecoder:
        return StreamDecoder(self, skip_special)

    def check_fits(self, vocab_size: int) -> None:
        """Raises ConfigError where a model's vocabulary of `vocab_size` is smaller than the
        tokenizer's."""
        if self.vocab_size > vocab_size:
            raise ConfigError(
                f"the tokenizer {self.origin} has {self.vocab_size} tokens, the model only "
                f"{vocab_size}: give --set vocab_size={self.vocab_size} or more, or another "
                "tokenizer"
            )

    @cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        byte_of = {char: byte for byte, char in enumerate(byte_alphabet())}
        return {
            id: token.encode()
            if token in self.added_ids or any(char not in byte_of for char in token)
            else bytes(byte_of[char] for char in token)
            for token, id in self._rendered.get_vocab().items()
        }

    @cached_property
    def _longest_bytes(self) -> int:
        """The most bytes of a text that one token can stand for: the bytes of the longest token,
        times four where there is a normalizer, which can shorten text (NFC makes one character of
        up to three)."""
        longest = max(map(len, self._bytes_of_id.values()), default=1) or 1
        return longest if self._spec.get("normalizer") is None else 4 * longest

    @cached_property
    def _document_template(self) -> dict[str, Any] | None:
        """Builds the post-processor that puts the same ids before a text as `encode_document` does;
        None without a bos."""
        if self.bos_id is None:
            return None
        bos = self.special_tokens["bos_token"]
        template = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", f"{bos}:1", "$B:1"],
            special_tokens=[(bos, self.bos_id)],
        )  # fmt: skip
        return json.loads(template.__getstate__())

    def _special_id(self, name: str, default: int | None = None) -> int:
        token = self.special_tokens.get(name)
        if token is None and default is not None:
            return default
        id = None if token is None else self._rendered.token_to_id(token)
        if id is None:
            given = "no" if token is None else f"as {token!r}, which is not in the vocabulary,"
            raise DataError(
                f"{self.origin}: {_CONFIG_FILE} gives {given} {name}; documents and turns need one"
            )
        return id


class StreamDecoder:
    """Decodes ids that arrive one at a time. A character is held back until all its bytes are
    there."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, *ids: int) -> str:
        """Gives the characters that `ids` complete, possibly none."""
        return self._utf8.decode(self._tokenizer.token_bytes(ids, self._skip_special))

    def flush(self) -> str:
        """Gives the rest of the text at its end; an unfinished character becomes U+FFFD."""
        return self._utf8.decode(b"", final=True)


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Gives the texts of the special tokens; in older files each is an object that holds the text
    as its "content"."""
    found = {}
    for name, token in config.items():
        token = token.get("content") if isinstance(token, dict) else token
        if name.endswith("_token") and isinstance(token, str):
            found[name] = token
    return found


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = load_json(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a tokenizer folder needs it") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: a JSON object is expected")
    return content


def _default_template(template: Any) -> str | None:
    """Gives the default template; older files hold a list of named templates."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template}
        template = named.get("default")
    if not isinstance(template, str | None):
        raise TypeError(f"chat_template is {template!r:.60}, which is no text")
    return template

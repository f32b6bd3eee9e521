"""Converts a checkpoint: `minimind convert --input RUN --to hf --output DIR`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from minimind.cli.verb_parser import VerbParser
from minimind.config.json_file import read_json_fields
from minimind.config.recipe import parse_assignments
from minimind.errors import ConfigError
from minimind.interop.conversion import convert
from minimind.interop.generations import GENERATIONS
from minimind.interop.gguf.encoding import CHOICES
from minimind.interop.options import ConvertOptions
from minimind.interop.readers import READERS
from minimind.interop.writers import WRITERS
from minimind.runtime.logging import set_up_logging

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(argv: Sequence[str] | None = None) -> int:
    set_up_logging(0)
    arguments = _parser().parse_args(argv)
    told = read_json_fields(arguments.config) if arguments.config else {}
    options = ConvertOptions(
        dtype=arguments.dtype,
        tokenizer=arguments.tokenizer,
        settings=told | parse_assignments(arguments.set),
        base=arguments.base,
        base_name=arguments.base_name,
        generation=arguments.generation,
        allow_custom_code=arguments.allow_custom_code,
        max_shard_bytes=_read_size(arguments.max_shard_size),
        quantize=arguments.quantize,
        modelfile=arguments.modelfile,
    )
    converted = convert(arguments.input, arguments.to, arguments.output, options)
    for line in (*converted.notes, *converted.differences):
        print(line)
    print(f"{arguments.output}: written")
    return 0


def _parser() -> VerbParser:
    parser = VerbParser(description="Converts a checkpoint to another format.")
    known = "; ".join(reader.what for reader in READERS)
    parser.add_argument("--input", required=True, type=Path, help=known)
    formats = "; ".join(f"{name}: {writer.what}" for name, writer in WRITERS.items())
    parser.add_argument("--to", required=True, choices=tuple(WRITERS), help=formats)
    parser.add_argument(
        "--output", required=True, type=Path, help="a folder or file that is not there yet"
    )
    dtypes = tuple(dict.fromkeys(name for writer in WRITERS.values() for name in writer.dtypes))
    parser.add_argument(
        "--dtype", choices=dtypes, help="of the weights (default: as they are in --input)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, help="the tokenizer's folder, for weights that bring none"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="a field of the model's configuration, for weights that do not say it",
    )
    parser.add_argument(
        "--config", type=Path, help="a JSON file of such fields, before those of --set"
    )
    parser.add_argument(
        "--base", type=Path, help="the model of an adapter of the original, which does not name it"
    )
    parser.add_argument(
        "--base_name",
        help="peft: what the adapter calls its model, such as a name on a hub (default: as in "
        "--input)",
    )
    parser.add_argument(
        "--generation",
        choices=tuple(GENERATIONS),
        help="pth, lora_pth: of the original MiniMind (default: 3 with QK norm, else 2601)",
    )
    parser.add_argument(
        "--allow_custom_code",
        action="store_true",
        help="hf: write a model that transformers can load with trust_remote_code=True alone, and "
        "the code it needs",
    )
    parser.add_argument(
        "--max_shard_size",
        default="5GB",
        help="hf: the largest file of weights, in KB, MB or GB (default: 5GB)",
    )
    parser.add_argument(
        "--quantize",
        choices=CHOICES,
        help="gguf: the type of the weights (default: the one that holds them as they are)",
    )
    parser.add_argument(
        "--modelfile", action="store_true", help="gguf: write a Modelfile for Ollama beside it"
    )
    return parser


def _read_size(text: str) -> int:
    """Reads a size such as 5GB, in bytes."""
    number, factor = text.strip().upper(), 1
    for unit, size in _UNITS.items():
        if number.endswith(unit):
            number, factor = number.removesuffix(unit), size
    if not number.strip().isdigit() or int(number) * factor <= 0:
        raise ConfigError(f"--max_shard_size {text}: give a size such as 500MB or 5GB")
    return int(number) * factor

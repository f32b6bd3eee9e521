"""Makes the parts of README.md and README_zh.md that hold figures: a few measured results, and the
time and memory of each model on common cards.

The two documents hold the same figures; `Words` has the sentences around them in each language.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from bench.cards.__main__ import BENCHMARK as CARDS_BENCHMARK
from bench.cards.__main__ import least_seconds
from bench.harness import NOT_MEASURED, Row, describe_place, format_table
from bench.results import Results, stage_of

TOKENS = 1e9
"""The tokens whose least time the table of cards gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """Holds the sentences and headings of one language."""

    not_measured: str
    training: str
    decoding: str
    scaling: str
    model: str
    times: tuple[str, str, str]
    """A time in hours, minutes and seconds."""
    cell: str
    """The time and memory of a model on a card."""


ENGLISH = Words(
    not_measured=NOT_MEASURED,
    training="**{ratio:.1f} times** as many useful tokens/s as the original's method (padded rows, "
    "{precision}): {ours:,.0f} and {theirs:,.0f}, pretraining `{model}` on {place}",
    decoding="**{first:.1f} times** the decoding speed of `transformers` with one sequence, "
    "**{last:.1f} times** with {batch}: `{model}` on {place}",
    scaling="**{efficiency:.0%}** of the ideal speed on {ranks} ranks, with as many rows a step as "
    "on one: `{model}` on {place}",
    model="model",
    times=("{:.1f} h", "{:.0f} min", "{:.0f} s"),
    cell="{time}, {gib:.1f} GiB",
)
CHINESE = Words(
    not_measured=f"未测量（{NOT_MEASURED}）",
    training="有效 tokens/s 是原版做法（补齐到等长、{precision}）的 **{ratio:.1f} 倍**："
    "{ours:,.0f} 对 {theirs:,.0f}，{place} 上预训练 `{model}`",
    decoding="解码速度是 `transformers` 的 **{first:.1f} 倍**（单个序列）"
    "与 **{last:.1f} 倍**（{batch} 个）：{place} 上的 `{model}`",
    scaling="每步行数不变时，{ranks} 个进程达到理想加速的 **{efficiency:.0%}**："
    "{place} 上的 `{model}`",
    model="模型",
    times=("{:.1f} 小时", "{:.0f} 分钟", "{:.0f} 秒"),
    cell="{time}，{gib:.1f} GiB",
)


def numbers_section(results: Results, words: Words) -> str:
    """Makes a line for each of the numbers on README's first screen, with the machine."""
    makers = (_training_number, _decoding_number, _scaling_number)
    lines = [line for make in makers if (line := make(results, words))]
    return "\n".join(f"- {line}" for line in lines) or f"- {words.not_measured}"


def _training_number(results: Results, words: Words) -> str | None:
    for machine, rows in _best_first(results, "train_step"):
        named = {row["name"]: row for row in rows if stage_of(row) == "pretrain"}
        ours, theirs = named.get("engine"), named.get("original")
        if ours and theirs and ours.get("ratio_to_original"):
            return words.training.format(
                ratio=ours["ratio_to_original"],
                precision=ours["precision"],
                ours=ours["useful_tokens_per_s"],
                theirs=theirs["useful_tokens_per_s"],
                model=ours["model"],
                place=describe_place(machine),
            )
    return None


def _decoding_number(results: Results, words: Words) -> str | None:
    for machine, rows in _best_first(results, "inference"):
        compared = [
            row for row in rows if row["name"] == "minimind" and row.get("ratio_to_transformers")
        ]
        if len(compared) > 1:
            first, *_, last = sorted(compared, key=lambda row: row["batch"])
            return words.decoding.format(
                first=first["ratio_to_transformers"],
                last=last["ratio_to_transformers"],
                batch=last["batch"],
                model=first["model"],
                place=describe_place(machine),
            )
    return None


def _scaling_number(results: Results, words: Words) -> str | None:
    for machine, rows in _best_first(results, "scaling"):
        measured = [
            row
            for row in rows
            if row["name"] == "strong" and row.get("efficiency") and row["world_size"] > 1
        ]
        if measured:
            most = max(measured, key=lambda row: row["world_size"])
            return words.scaling.format(
                efficiency=most["efficiency"],
                ranks=most["world_size"],
                model=most["model"],
                place=describe_place(machine),
            )
    return None


def _best_first(results: Results, benchmark: str) -> list[tuple[Row, Sequence[Row]]]:
    """Gives machine and rows of each results file of a benchmark, GPUs before CPUs and then the
    newest first."""
    found = results.oldest_first(benchmark)[::-1]
    found.sort(key=lambda one: one["machine"]["kind"] != "gpu")
    return [(one["machine"], one["rows"]) for one in found]


def time_and_memory_section(results: Results, words: Words) -> str:
    """Makes a line for each model: the least time of a billion tokens and the peak memory of a
    card, as rehearsed."""
    found = results.newest(CARDS_BENCHMARK)
    if found is None:
        return words.not_measured
    cells: dict[str, dict[str, str]] = {}
    for row in found["rows"]:
        count = f"{row['world_size']} × " * (row["world_size"] > 1)
        cells.setdefault(row["model"], {})[f"{count}{row['name']}"] = words.cell.format(
            time=_spell_time(least_seconds(row, TOKENS), words), gib=row["peak_bytes"] / 2**30
        )
    places = list(dict.fromkeys(place for of_model in cells.values() for place in of_model))
    lines = [
        [f"`{model}`", *(of_model[place] for place in places)] for model, of_model in cells.items()
    ]
    return format_table((words.model, *places), lines)


def _spell_time(seconds: float, words: Words) -> str:
    hours, minutes, short = words.times
    if seconds >= 3600:
        return hours.format(seconds / 3600)
    return minutes.format(seconds / 60) if seconds >= 100 else short.format(seconds)


README_SECTIONS: dict[str, Callable[[Results], str]] = {
    f"{name}{suffix}": partial(make, words=words)
    for suffix, words in (("", ENGLISH), ("_zh", CHINESE))
    for name, make in (
        ("numbers", numbers_section),
        ("time_and_memory", time_and_memory_section),
    )
}
"""The sections of README.md, and those of README_zh.md with `_zh` behind their names."""

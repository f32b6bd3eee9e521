"""Lists all sample data by name, as `--data sample:NAME` chooses it."""

from __future__ import annotations

from minimind.config.spelling import did_you_mean
from minimind.data.mixture import SAMPLE_PREFIX
from minimind.errors import ConfigError
from minimind.samples.files import (
    CHAT_DATA,
    PREFERENCE_DATA,
    SENTENCES_DATA,
    TEXT_DATA,
    UNPAIRED_DATA,
    SampleData,
    Split,
    sample_data_path,
)
from minimind.samples.tasks import PROMPT_DATA, SUMS_DATA, TOOLS_DATA

SAMPLE_DATA: dict[str, SampleData] = {
    data.name: data
    for data in (
        TEXT_DATA,
        CHAT_DATA,
        SENTENCES_DATA,
        PREFERENCE_DATA,
        UNPAIRED_DATA,
        PROMPT_DATA,
        SUMS_DATA,
        TOOLS_DATA,
    )
}


def find_data_file(path: str, split: Split) -> str:
    """Gives the path of the file for `sample:NAME`, and writes the file where it is missing. Any
    other path is returned as it is. Raises ConfigError for an unknown NAME."""
    if not path.startswith(SAMPLE_PREFIX):
        return path
    name = path.removeprefix(SAMPLE_PREFIX)
    if name not in SAMPLE_DATA:
        raise ConfigError(
            f"{path}: no sample data has this name{did_you_mean(name, SAMPLE_DATA, _spell)}; "
            f"there are {', '.join(map(_spell, SAMPLE_DATA))}. A file of that name is ./{path}"
        )
    return str(sample_data_path(split, SAMPLE_DATA[name]))


def _spell(name: str) -> str:
    return SAMPLE_PREFIX + name

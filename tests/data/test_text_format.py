from __future__ import annotations

import numpy as np
import pytest

from minimind.data.jsonl import BadRow
from minimind.data.text_format import text_samples
from minimind.data.tokenizer import Tokenizer
from minimind.types import Row, Sample


def _row(line: int = 1, **data: object) -> Row:
    return Row(data=data, path="f.jsonl", line=line)


def test_a_text_is_bos_text_eos_and_every_token_a_target(tokenizer: Tokenizer) -> None:
    (sample,) = text_samples([_row(text="7加5 <|im_end|>\x00", other=[1])], tokenizer)
    assert isinstance(sample, Sample)
    ids = sample.ids.tolist()
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    assert tokenizer.decode(ids[1:-1], skip_special=False) == "7加5 <|im_end|>\x00"
    assert sample.ids.dtype == np.int32
    assert sample.is_target.all()
    assert sample.is_target.shape == sample.ids.shape


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"text": 5}, '"text" is a number where a string is expected'),
        ({"text": None}, '"text" is null where'),
        ({"text": ["a"]}, '"text" is a list where'),
        ({"text": True}, '"text" is a boolean where'),
        ({"text": {"a": 1}}, '"text" is an object where'),
        ({"text": ""}, '"text" is empty'),
        ({"text": " \n"}, '"text" is blank'),
        ({"txt": "x"}, "no key \"text\" (keys found: 'txt')"),
        ({}, 'no key "text" (keys found: none)'),
        ({"text": "ab\ud800"}, "half a character (\\ud800, a lone surrogate) at character 3"),
    ],
)
def test_bad_rows_do_not_disturb_their_neighbours(
    tokenizer: Tokenizer, data: dict, reason: str
) -> None:
    rows = [_row(1, text="a"), _row(2, **data), _row(3, text="b")]
    first, bad, last = text_samples(rows, tokenizer)
    assert isinstance(bad, BadRow)
    assert str(bad).startswith("f.jsonl:2: ")
    assert reason in bad.reason
    assert [isinstance(s, Sample) and tokenizer.decode(s.ids) for s in (first, last)] == ["a", "b"]

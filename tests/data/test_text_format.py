from __future__ import annotations

import numpy as np
import pytest
from data_checks import check_middle_is_bad
from data_rows import as_rows

from minimind.data.text_format import text_samples
from minimind.data.tokenizer import Tokenizer
from minimind.types import Sample


def test_a_text_is_bos_text_eos_and_every_token_a_target(tokenizer: Tokenizer) -> None:
    (sample,) = text_samples(as_rows({"text": "7加5 <|im_end|>\x00", "other": [1]}), tokenizer)
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
    rows = as_rows({"text": "a"}, data, {"text": "b"})
    found = text_samples(rows, tokenizer)
    check_middle_is_bad(found, reason)
    assert [tokenizer.decode(one.ids) for one in found if isinstance(one, Sample)] == ["a", "b"]

"""Tables of text."""

from __future__ import annotations

from minimind.runtime.text_table import format_table


def test_columns_are_aligned_also_beside_chinese_text():
    rows = [{"step": "chat", "answer": "蓝色"}, {"step": "a|b", "answer": "two\nlines"}]
    assert format_table(rows).splitlines() == [
        "| step | answer    |",
        "| ---- | --------- |",
        "| chat | 蓝色      |",
        "| a\\|b | two lines |",
    ]

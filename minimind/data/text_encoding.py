"""Recognises the encoding of a text by its bytes. Only UTF-8 is read; for another encoding the
error says how to convert it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_MARKS = ((b"\xff\xfe\x00\x00", "UTF-32"), (b"\x00\x00\xfe\xff", "UTF-32"),
          (b"\xff\xfe", "UTF-16"), (b"\xfe\xff", "UTF-16"))  # fmt: skip
_LINES = 20
"""The number of lines with non-ASCII characters that are examined."""
_SURE = 0.85
"""The share of those characters that must be common ones in an encoding's language."""
_ENOUGH = 3
Share = Callable[[Sequence[bytes]], float]
"""Takes lines and gives the share of their non-ASCII characters that are common in one encoding's
language."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """Describes an encoding that is not read."""

    name: str
    """The name for messages; "" for an unknown encoding."""
    code: str
    """The name that `iconv -f` takes."""


def find_encoding(head: bytes, is_cut: bool) -> Encoding | None:
    """Recognises a file's encoding by its beginning; `is_cut` says that the file goes on after it.
    Gives None for UTF-8, and for binary data, which contains zero bytes."""
    for mark, name in _MARKS:
        if head.startswith(mark):
            return Encoding(name, name)
    start = head[:1024]
    if b"\0" in start:
        for name, part in (("UTF-16LE", start[1::2]), ("UTF-16BE", start[::2])):
            if part.count(0) > len(part) * 0.4 and start.count(0) < len(start) * 0.6:
                return Encoding(name, name)
        return None
    lines = [line for line in head.split(b"\n")[:_LINES] if not line.isascii()]
    if is_cut and len(lines) > 1:
        lines.pop()  # its end may be cut
    if not lines or any(_is_utf8(line, is_cut) for line in lines):
        return None
    if found := _likeliest(_OF_TWO_BYTES, lines):
        return found
    runs = [len(run) for line in lines for run in re.findall(rb"[\x80-\xff]+", line)]
    # In a one-byte encoding, accented letters and quotes stand between ASCII characters.
    if len(runs) >= _ENOUGH and sum(runs) < 1.5 * len(runs) and _decode(lines, "cp1252"):
        return Encoding("Windows-1252 (or Latin-1)", "CP1252")
    if found := _likeliest(_OF_ONE_BYTE, lines):
        return found
    return Encoding("", "ENCODING") if len(lines) >= _ENOUGH else None


def _likeliest(table: Sequence[tuple[Share, Encoding]], lines: Sequence[bytes]) -> Encoding | None:
    shares = {share(lines): encoding for share, encoding in table}
    return shares[max(shares)] if max(shares) > _SURE else None


def _is_utf8(line: bytes, is_cut: bool) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as error:
        # A head may end in the middle of a character.
        return is_cut and error.reason == "unexpected end of data"
    return True


def _decode(lines: Sequence[bytes], codec: str) -> str:
    """Gives the non-ASCII characters of the lines; "" where the codec cannot decode them."""
    try:
        text = "".join(line.decode(codec) for line in lines)
    except UnicodeDecodeError:
        return ""
    return "".join(char for char in text if not char.isascii())


def _share(codec: str, is_usual: Callable[[str], bool]) -> Share:
    def share(lines: Sequence[bytes]) -> float:
        text = _decode(lines, codec)
        return sum(map(is_usual, text)) / len(text) if len(text) >= _ENOUGH else 0.0

    return share


def _lead(char: str, codec: str) -> int:
    """Gives the first of a character's two bytes in the codec; 0 for a character of another
    length."""
    coded = char.encode(codec, "ignore")
    return coded[0] if len(coded) == 2 else 0


def _is_chinese(char: str) -> bool:
    lead = _lead(char, "gb2312")
    return lead in (0xA1, 0xA3) or 0xB0 <= lead <= 0xD7


def _is_traditional(char: str) -> bool:
    lead = _lead(char, "big5")
    return lead == 0xA1 or 0xA4 <= lead <= 0xC6


def _is_japanese(char: str) -> bool:
    lead = _lead(char, "shift_jis")
    return 0x81 <= lead <= 0x83 or 0x88 <= lead <= 0x97


def _japanese(codec: str) -> Share:
    share, kana = _share(codec, _is_japanese), _share(codec, lambda char: "\u3041" <= char <= "ヶ")
    # Every Japanese text has kana; Chinese text decodes to kana only by chance.
    return lambda lines: share(lines) + 0.1 if kana(lines) > 0.2 else 0.0


def _korean(lines: Sequence[bytes]) -> float:
    share = _share("euc_kr", lambda char: "가" <= char <= "힣" or char in "·…‘’“”")(lines)
    return share + 0.1 if share > 0.97 else 0.0  # Chinese letters are Korean ones by two thirds


def _is_small_cyrillic(char: str) -> bool:
    return "а" <= char <= "я" or char == "ё"


_OF_TWO_BYTES: tuple[tuple[Share, Encoding], ...] = (
    (_share("gb18030", _is_chinese), Encoding("GBK (GB18030)", "GB18030")),
    (_share("big5", _is_traditional), Encoding("Big5", "BIG5")),
    (_japanese("cp932"), Encoding("Shift-JIS", "CP932")),
    (_japanese("euc_jp"), Encoding("EUC-JP", "EUC-JP")),
    (_korean, Encoding("EUC-KR", "CP949")),
)
_OF_ONE_BYTE: tuple[tuple[Share, Encoding], ...] = (
    (_share("cp1251", _is_small_cyrillic), Encoding("Windows-1251", "CP1251")),
    (_share("koi8_r", _is_small_cyrillic), Encoding("KOI8-R", "KOI8-R")),
)

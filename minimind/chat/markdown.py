"""Makes Markdown that a model wrote safe to show on a web page."""

from __future__ import annotations


def without_images(text: str) -> str:
    """Gives Markdown in which no image is left: `![…](…)` becomes a link behind a `!`.

    A browser loads an image as soon as it is shown, from any address that the model names, and so
    would tell a stranger what the conversation is about. An image needs `](` or, with its address
    elsewhere, `]:`. Where the text has neither, a `![` is code, such as `vec![1]`, and stays.
    """
    if "](" not in text and "]:" not in text:
        return text
    return text.replace("![", "! [")

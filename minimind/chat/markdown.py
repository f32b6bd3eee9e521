"""Makes Markdown that a model wrote safe to show on a web page."""

from __future__ import annotations


def without_images(text: str) -> str:
    """Gives the Markdown without images: `![…](…)` becomes `!` and a link.

    A browser would load an image as soon as it is shown, from any address that the model wrote, and
    so could send parts of the conversation to a stranger. An image needs `](` or, if its address is
    elsewhere, `]:`. In a text without either, `![` is code, such as `vec![1]`, and stays.
    """
    if "](" not in text and "]:" not in text:
        return text
    return text.replace("![", "! [")

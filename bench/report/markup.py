"""HTML as a tree: what is put in as text stays text."""

from __future__ import annotations

from xml.etree.ElementTree import Element, tostring


def tag(name: str, /, *children: str | Element, **attributes: str) -> Element:
    """An element; ``class_`` is the attribute class, ``aria_label`` is aria-label."""
    made = Element(name, {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items()})
    last: Element | None = None
    for child in children:
        if isinstance(child, Element):
            made.append(child)
            last = child
        elif last is None:
            made.text = (made.text or "") + child
        else:
            last.tail = (last.tail or "") + child
    return made


def page(html: Element) -> bytes:
    """The whole file, in UTF-8; characters that it cannot have become references to them."""
    text = "<!DOCTYPE html>\n" + tostring(html, encoding="unicode", method="html") + "\n"
    return text.encode("utf-8", errors="xmlcharrefreplace")

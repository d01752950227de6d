"""XML from elsewhere, read without the parts of XML that attack their reader."""

from __future__ import annotations

from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

_MOST_DEEP = 64


def parse_xml(content: bytes) -> Element:
    """Return the root element of an XML document.

    A DOCTYPE that only names an external DTD is passed over, as Cobertura's writers have one; the DTD is
    never fetched.

    Raises:
        ValueError: it is not well-formed, declares entities or a DTD of its own, or is nested deeper than
            64 elements.
    """
    builder = TreeBuilder()
    depth = 0

    def begin(name: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MOST_DEEP:
            raise ValueError(f"elements are nested deeper than {_MOST_DEEP}")
        builder.start(name, attributes)

    def end(name: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(name)

    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = begin, end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler, parser.EntityDeclHandler = _doctype, _entity
    try:
        parser.Parse(content, True)  # noqa: FBT003 - expat knows it by position only
    except expat.ExpatError as error:
        raise ValueError(f"not well-formed XML: {error}") from error
    return builder.close()


def _doctype(_name: str, _system: str | None, _public: str | None, has_internal_subset: int) -> None:
    if has_internal_subset:
        raise ValueError("a DTD inside the document is refused")


def _entity(*_: object) -> None:
    raise ValueError("entity declarations are refused")

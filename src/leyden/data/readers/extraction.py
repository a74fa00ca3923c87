"""Text out of pages of HTML and of PDF files, by libraries whose time and memory only the end of a process bounds.

:class:`~leyden.core.limited.LimitedProcess` runs this file in a child, by its path: so it imports none of Leyden.
"""

import contextlib
import importlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

_MAX_LINKED = 0.6
"""Of a list's text, in links: a list with more of it there is a menu."""

_MAX_LINKED_FOR_RESILIPARSE = 0.15
"""Below what it allows, as it counts spaces, too."""

_MARKUP = re.compile(r"<[^>]*>|\s+")
_LINK = re.compile(r"<a[\s>].*?</a>", re.DOTALL)

_AROUND = ("ul", "nav", "header", "footer", "aside", *(f"[role={role}]" for role in ("navigation", "banner", "menu")))
_LEFT_ALONE = ", ".join(f"{around} ul" for around in _AROUND)
"""Lists in navigation, and in others, with which they stay or go."""

_MIN_DEPTH = 4
"""Of a ``ul``, below ``body``, for resiliparse not to take it for a menu whatever it says."""


def make(*modules: str) -> Callable[..., Any]:
    """The function that the child runs: one of those below, by its name.

    Args:
        modules: what they need, imported before any limit holds.
    """
    for module in modules:
        importlib.import_module(module)
    pdf = _Pdf()
    functions: dict[str, Callable[..., Any]] = {"html": text_of_html, "open": pdf.open, "page": pdf.page}
    return lambda name, *arguments: functions[name](*arguments)


def text_of_html(page: str, extractor: str, max_levels: int, with_metadata: bool) -> tuple[str | None, dict[str, str]]:
    """The main text of a page, and its title and language.

    Args:
        page: HTML.
        extractor: "resiliparse" or "trafilatura".
        max_levels: of elements; the text of a page that is nested more deeply is None.
        with_metadata: whether title and language are wanted.
    """
    from resiliparse.parse.html import HTMLTree
    from resiliparse.parse.html.exception import HTMLParserException

    tree: Any
    try:
        tree = HTMLTree.parse(page)
    except HTMLParserException:  # nothing is not HTML: there was no memory for its elements
        raise MemoryError from None
    if max_levels and _levels(tree, max_levels) > max_levels:
        return None, {}
    about = _about(tree) if with_metadata else {}
    if tree.body is not None and _mend_lists(tree):
        page = tree.document.html
    return _by_trafilatura(page) if extractor == "trafilatura" else _by_resiliparse(tree), about


def _by_resiliparse(tree: Any) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    if tree.body is not None:
        _keep_lists(tree)
    return extract_plain_text(tree, main_content=True)


def _mend_lists(tree: Any) -> bool:
    """Make a ``ul`` of every other list of items without numbers, which the extractors mistake; whether there was one.

    They leave them out, or take what follows for one more item.
    """
    lists = tree.body.query_selector_all("menu, dir").values()
    for element in lists:
        block = tree.create_element("ul")
        for name in ("class", "id", "role"):
            if element.hasattr(name):
                block.setattr(name, element.getattr(name))
        _move_children(element, block)
    items = tree.body.query_selector_all(":not(ul):not(ol) > li").values()
    for item in items:
        block = tree.create_element("ul")
        item.replace_with(block)
        block.append_child(item)
    return bool(lists or items)


def _keep_lists(tree: Any) -> None:
    """Let lists of text pass for main content.

    To resiliparse a ``ul`` near the root is a menu, and so is one further down of whose text a fifth is links. Those
    that are not mostly links are put further down, without their links; what else it looks at (class, id, role) stays.
    """
    others = set(tree.body.query_selector_all(_LEFT_ALONE).values())
    for element in tree.body.query_selector_all("ul").values():
        if element in others or (share := _share_of_links(element.html)) > _MAX_LINKED:
            continue
        if share > _MAX_LINKED_FOR_RESILIPARSE:
            for link in element.query_selector_all("a").values():
                _move_children(link, tree.create_element("span"))
        if _is_near_root(element):
            outer = block = tree.create_element("div")
            for _ in range(_MIN_DEPTH):
                inner = tree.create_element("div")
                block.append_child(inner)
                block = inner
            element.replace_with(outer)
            block.append_child(element)


def _share_of_links(html: str) -> float:
    """How much of the text of an element is in links."""
    text = len(_MARKUP.sub("", html))
    return 1 - len(_MARKUP.sub("", _LINK.sub("", html))) / text if text else 1.0


def _is_near_root(element: Any) -> bool:
    for _ in range(_MIN_DEPTH):
        element = element.parent
        if element is None or element.tag == "body":
            return True
    return False


def _move_children(element: Any, other: Any) -> None:
    """Put another element in the place of one."""
    element.replace_with(other)
    while (child := element.first_child) is not None:
        other.append_child(child)


def _by_trafilatura(page: str) -> str:
    import trafilatura

    # Without favor_recall it loses a tenth of the items of lists of plain pages, with it a thirtieth, and no menu more.
    return trafilatura.extract(page, include_comments=False, favor_recall=True) or ""


def _about(tree: Any) -> dict[str, str]:
    title = (tree.title or "").strip()
    root = tree.document.query_selector("html")
    language = (root.getattr("lang") or "").strip() if root is not None else ""
    return {name: value for name, value in (("title", title), ("html_language", language)) if value}


def _levels(tree: Any, most: int) -> int:
    """The depth of the deepest element, or more than ``most``."""
    deepest = 0
    node, level = tree.document, 0
    while node is not None and deepest <= most:
        if node.first_child is not None:
            node, level = node.first_child, level + 1
            deepest = max(deepest, level)
            continue
        while node is not None and node.next is None:
            node, level = node.parent, level - 1
        node = node.next if node is not None else None
    return deepest


class _Pdf:
    """The PDF file that is being read, page after page."""

    def __init__(self) -> None:
        self._path, self._reader = "", None

    def open(self, path: str) -> tuple[int, dict[str, str]]:
        """Open a file; its number of pages, and its title, author and time of creation (ISO 8601) where it has them.

        Raises:
            PermissionError: it needs a password, or the cryptography package.
            Exception: almost any other, if it is broken.
        """
        import pypdf

        logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # it warns of each of a file's slips
        with _a_missing_package_is_told():
            reader = pypdf.PdfReader(path)
            if reader.is_encrypted and not reader.decrypt(""):
                raise PermissionError("it needs a password")
            about = reader.metadata
            known = {name: str(value) for name, value in (_about_pdf(about) if about else {}).items() if value}
            self._path, self._reader = path, reader
            return len(reader.pages), known

    def page(self, path: str, number: int) -> tuple[str, float]:
        """The text of a page of a file, opened or not; and how many seconds of the processor's time it took."""
        started = time.process_time()
        if self._path != path or self._reader is None:
            self.open(path)
        assert self._reader is not None
        with _a_missing_package_is_told():
            return self._reader.pages[number].extract_text(), time.process_time() - started


@contextlib.contextmanager
def _a_missing_package_is_told() -> Iterator[None]:
    import pypdf.errors

    try:
        yield
    except pypdf.errors.DependencyError:
        raise PermissionError("its encryption needs another package: pip install 'cryptography>=3.1'") from None


def _about_pdf(about: Any) -> dict[str, Any]:
    try:
        created = about.creation_date
    except ValueError:  # what pypdf raises for a date that is none
        created = None
    return {"title": about.title, "author": about.author, "created": created and created.isoformat()}

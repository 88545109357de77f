"""Spans of code that are parts of its syntax: what a programmer takes out is rarely a random string."""

import ast
import importlib
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from ..optional import require
from .token_splitter import TokenSplitter


Span = tuple[int, int]  # first character, and the one after the last
RETRIES = 12  # a unit is a piece of a file: what its borders cut through is left out, so many times


@dataclass
class SyntaxTree:
    """
    Args:
        nodes (`list[Span]`): what a syntax tree is made of, from statements down to names and numbers.
        groups (`list[list[Span]]`): statements that follow one another, for every body of code.
    """

    nodes: list[Span] = field(default_factory=list)
    groups: list[list[Span]] = field(default_factory=list)


def parse_python(text: str) -> SyntaxTree | None:
    """
    The syntax of Python source, or of the whole statements in a piece of it.

    Args:
        text (`str`): a file, or any lines of one.

    Returns:
        [`SyntaxTree`], or `None` for text without a statement that can be parsed.

    Example:

    ```python
    >>> from modeling_lpn.code.spans import parse_python

    >>> text = "a = f(1)\\nb = 2\\nif ("  # a unit ended here
    >>> tree = parse_python(text)
    >>> [text[start:end] for start, end in tree.groups[0]]
    ['a = f(1)', 'b = 2']
    >>> sorted({text[start:end] for start, end in tree.nodes})
    ['1', '2', 'a', 'a = f(1)', 'b', 'b = 2', 'f', 'f(1)']

    ```
    """
    starts = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]
    begin, last = 0, len(text)  # the first line that is parsed, and the character to stop before
    for _ in range(RETRIES):
        lines = [start for start in starts[begin:] if start < last]
        opening = _opening(text[start : start + 200] for start in lines)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the source's own strings
                module = ast.parse(opening + text[starts[begin] : last] if lines else "")
            return _python_tree(module, text[:last], lines, opening.count("\n"))
        except SyntaxError as error:
            line = max((error.lineno or 1) - 1 - opening.count("\n"), 0)
            unexpected = isinstance(error, IndentationError) and line > 0  # what went before was cut off
        except (ValueError, RecursionError, MemoryError):
            return None
        if line > len(lines) // 2:  # the piece ends within a statement
            last = lines[min(line, len(lines) - 1)]
        else:
            begin += line + (not unexpected)
    return None


def _opening(lines: Iterable[str]) -> str:
    """Lines that open the bodies of code which a piece begins within."""
    levels: list[str] = []
    for line in lines:
        indent = re.match(r"[ \t]*", line)[0]
        if line.strip() and line[len(indent)] != "#" and (not levels or len(indent) < len(levels[-1])):
            levels.append(indent)
            if not indent:
                break
    levels = [*([] if levels and not levels[-1] else [""]), *reversed(levels)]
    return "".join(f"{level}if 1:\n" for level in levels[:-1])


def _python_tree(module: ast.Module, text: str, lines: list[int], opened: int) -> SyntaxTree | None:
    """Spans of a parsed piece, whose lines start at the given characters, behind the lines that opened it."""

    def place(line: int, column: int) -> int:
        start = lines[line - 1 - opened]
        end = lines[line - opened] if line - opened < len(lines) else len(text)
        part = text[start:end]
        return start + (column if part.isascii() else len(part.encode()[:column].decode(errors="ignore")))

    def span(node: ast.AST) -> Span:
        top = min([node, *getattr(node, "decorator_list", ())], key=lambda part: (part.lineno, part.col_offset))
        begin = place(top.lineno, top.col_offset)
        return begin - (top is not node), place(node.end_lineno, node.end_col_offset)  # the @ of a decorator

    tree = SyntaxTree()
    for node in ast.walk(module):
        if getattr(node, "lineno", 0) > opened:
            tree.nodes.append(span(node))
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            children = getattr(node, name, None)
            if isinstance(children, list) and children and getattr(children[0], "lineno", 0) > opened:
                tree.groups.append([span(child) for child in children])
    return tree if tree.groups else None


def tree_sitter_parser(language: str) -> Callable[[str], SyntaxTree | None]:
    """
    A parser of any language by tree-sitter, from the package `tree-sitter-<language>`.

    Args:
        language (`str`): `"javascript"`, `"java"`, `"go"`, `"rust"`, `"c"`, ...

    Returns:
        `Callable[[str], SyntaxTree | None]`: as [`parse_python`].

    Raises:
        ImportError: where tree-sitter or the language's package is not installed.
    """
    tree_sitter = require("tree_sitter", "syntax", "Spans by syntax")
    try:
        package = importlib.import_module(f"tree_sitter_{language}")
    except ImportError as error:
        raise ImportError(
            f"The syntax of {language!r} needs its grammar: pip install tree-sitter-{language.replace('_', '-')}"
        ) from error
    parser = tree_sitter.Parser(tree_sitter.Language(package.language()))

    def parse(text: str) -> SyntaxTree | None:
        content = text.encode(errors="replace")
        # By byte, the number of characters that began before it.
        begins = (np.frombuffer(content, np.uint8) & 0xC0) != 0x80
        places = np.concatenate(([0], begins.cumsum()))

        def span(node) -> Span:
            return int(places[node.start_byte]), int(places[node.end_byte])

        tree, waiting = SyntaxTree(), [parser.parse(content).root_node]
        while waiting:
            node = waiting.pop()
            children = [child for child in node.named_children if child.type != "ERROR" and not child.is_missing]
            waiting += children
            tree.nodes += [span(child) for child in children]
            lines = [child.start_point[0] for child in children]
            if len(children) > 1 and len(set(lines)) == len(lines):  # each on a line of its own: statements, members
                tree.groups.append([span(child) for child in children])
        return tree if tree.nodes else None

    return parse


class SyntaxSplitter(TokenSplitter):
    """
    Cuts a piece of a file around a part of its syntax, for [`Infill`]: `Infill(splitter=SyntaxSplitter(tokenizer))`.

    A share `syntax_rate` of the spans is taken from the syntax tree (arXiv 2506.00204 trains so), the others are random
    ones, as of [`TokenSplitter`]. Half of the former are single nodes, a node being as likely as it is long; half are runs
    of statements that follow one another, the run nearest to two uniform points in the smallest body of code around them.
    Where a piece cannot be parsed, the span is random. [`SpanCorruption`] takes one as well, see [`SyntaxSplitter.shrink`].

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's.
        syntax_rate (`float`, defaults to 0.9): share of spans by syntax.
        language (`str`, defaults to `"python"`): what the files are written in; others than Python need tree-sitter, see
            [`tree_sitter_parser`].

    Attributes:
        counts (`Counter`): spans drawn so far: `node`, `run`, `random`, and `unparsable` and (of span corruption) `short`, which
            were random for that reason. Each process and worker counts its own.

    Raises:
        ValueError: for a rate that is no share.
        ImportError: see [`tree_sitter_parser`].
    """

    DRAWS = 5  # two points, by syntax or not, node or run, which node

    def __init__(self, tokenizer, syntax_rate: float = 0.9, language: str = "python"):
        if not 0 <= syntax_rate <= 1:
            raise ValueError(f"`syntax_rate` is {syntax_rate}; give a share in [0, 1].")
        super().__init__(tokenizer)
        self.syntax_rate, self.language, self.counts = syntax_rate, language, Counter()
        self._parse: Callable[[str], SyntaxTree | None] | None = None
        self._parser()

    def __getstate__(self) -> dict:
        return {**vars(self), "_parse": None}  # a worker makes its own: tree-sitter's cannot be copied

    def _parser(self) -> Callable[[str], SyntaxTree | None]:
        if self._parse is None:
            self._parse = parse_python if self.language == "python" else tree_sitter_parser(self.language)
        return self._parse

    def cut(self, token_ids, taken, room, rng):
        self._kind = "random"
        found = super().cut(token_ids, taken, room, rng)
        self.counts[self._kind] += found is not None
        return found

    def _characters(self, token_ids, ends, draws):
        points, self._kind = super()._characters(token_ids, ends, draws[:2]), "random"
        if draws[2] >= self.syntax_rate:
            return points
        _, tree = self._tree(token_ids, ends)
        if tree is None:
            self._kind = "unparsable"
            return points
        self._kind = "node" if draws[3] < 0.5 or not tree.groups else "run"
        span = choose_node(tree, draws[4]) if self._kind == "node" else choose_run(tree, *points.tolist())
        return np.array(span)

    def _tree(self, token_ids, ends) -> tuple[str, SyntaxTree | None]:
        """The text of a piece, and its syntax where tokens and characters belong to each other."""
        text = self.tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        return text, self._parser()(text) if len(text) == ends[-1] else None

    def shrink(self, token_ids, starts, lengths, rng) -> tuple[list[int], list[int]]:
        """
        Takes of random spans the longest part of the syntax that lies in each of them, for [`SpanCorruption`]: a node or, for half
        of them, a run of statements that follow one another if there is any. So a unit has as many spans as its law has drawn,
        none longer than drawn, and no tokens other than its own.

        Args:
            token_ids (`numpy.ndarray` of shape `(tokens,)`): the piece of a file.
            starts, lengths (`Sequence[int]`): its spans, in tokens.
            rng (`numpy.random.Generator`): draws which of them, a share of `syntax_rate`, are by syntax.

        Returns:
            `tuple[list[int], list[int]]`: starts and lengths, in tokens; white space at the ends of its tokens goes with a part
            of the syntax. A span in which none lies (`short`, as most of three tokens are) stays as it is, and all do in a piece
            that cannot be parsed.
        """
        draws = rng.random((len(starts), 2)).tolist()
        parts = self._parts(token_ids) if any(draw < self.syntax_rate for draw, _ in draws) else None
        starts, lengths = list(starts), list(lengths)
        for number, (draw, half) in enumerate(draws):
            kind, found = "random", None
            if draw < self.syntax_rate:
                kind, names = "unparsable" if parts is None else "short", ("run", "node") if half < 0.5 else ("node",)
                for name in names if parts else ():
                    found = longest_within(*parts[name], starts[number], starts[number] + lengths[number])
                    if found is not None:
                        kind, starts[number], lengths[number] = name, found[0], found[1] - found[0]
                        break
            self.counts[kind] += 1
        return starts, lengths

    def _parts(self, token_ids) -> dict[str, np.ndarray] | None:
        """
        Nodes and statements that are whole tokens, but for white space: `(3, parts)`, the first token, the one after the last, and
        the number of the body of code; `None` where nothing can be parsed.
        """
        ends = self._ends(token_ids)
        text, tree = self._tree(token_ids, ends)
        if tree is None:
            return None
        borders = np.concatenate(([0], ends))
        shown = np.concatenate(([0], np.cumsum([not character.isspace() for character in text])))  # before a character

        def in_tokens(spans) -> np.ndarray:
            begin, end, body = np.array(spans, dtype=np.int64).reshape(-1, 3).T
            first, last = ends.searchsorted(begin, side="right"), ends.searchsorted(end - 1, side="right")
            whole = (shown[borders[first]] == shown[begin]) & (shown[ends[last]] == shown[end]) & (begin < end)
            # Behind the last token there may be further ones of the same character.
            return np.stack([first, ends.searchsorted(ends[last], side="right"), body])[:, whole]

        return {
            "node": in_tokens([(*span, number) for number, span in enumerate(tree.nodes)]),
            "run": in_tokens([(*span, number) for number, group in enumerate(tree.groups) for span in group]),
        }


def choose_node(tree: SyntaxTree, draw: float) -> Span:
    """A node, as likely as it is long, by a uniform number in [0, 1)."""
    bounds = np.cumsum([end - start for start, end in tree.nodes])
    return tree.nodes[min(int(bounds.searchsorted(draw * bounds[-1], side="right")), len(tree.nodes) - 1)]


def longest_within(first, stop, body, start: int, end: int) -> tuple[int, int] | None:
    """The longest run of neighbouring parts of one body between two tokens: see [`SyntaxSplitter.shrink`]; `None` without any."""
    inside = ((first >= start) & (stop <= end)).nonzero()[0]
    if not len(inside):
        return None
    opens = np.diff(body[inside], prepend=-1).nonzero()[0]  # where the parts of another body begin
    begins, ends = first[inside[opens]], stop[inside[np.append(opens[1:], len(inside)) - 1]]
    longest = int((ends - begins).argmax())
    return int(begins[longest]), int(ends[longest])


def choose_run(tree: SyntaxTree, first: int, last: int) -> Span:
    """The run of siblings nearest to two characters, in the smallest body around them, or else the largest one."""

    def extent(group: list[Span]) -> int:
        return group[-1][1] - group[0][0]

    around = [group for group in tree.groups if group[0][0] <= first and last <= group[-1][1]]
    group = min(around, key=extent) if around else max(tree.groups, key=extent)
    begin = min(range(len(group)), key=lambda place: abs(group[place][0] - first))
    end = min(range(begin, len(group)), key=lambda place: abs(group[place][1] - last))
    return group[begin][0], group[end][1]


__all__ = ["SyntaxSplitter", "SyntaxTree", "parse_python", "tree_sitter_parser"]

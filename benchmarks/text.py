"""Real English text and source code, without a download, and the tokenizer that MiniLM reads them with.

The text is Python's own reference and the docstrings of torch, the code Python's standard library, which lie on every
machine that runs this. They are the same on machines with the same versions of both.
"""

from __future__ import annotations

import random
import re
import sysconfig
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from pydoc_data.topics import topics

import torch

UNKNOWN, START, END = "[UNK]", "[CLS]", "[SEP]"
MASK = "[MASK]"
_NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
_DOCSTRING = re.compile(r'"""(.*?)"""', re.DOTALL)
_SENTENCE = re.compile(r"[A-Z][a-z]+(?: [\w,;:'()\"-]+){5,24}\.(?=\s)")
_WORD = re.compile(r"\w+|[^\w\s]")


def documents(characters: int) -> list[str]:
    """Return texts until they have so many characters together, or all there are."""
    texts = list(topics.values())
    total = sum(map(len, texts))
    for path in sorted(Path(torch.__path__[0]).rglob("*.py")):
        if total >= characters:
            break
        found = _DOCSTRING.findall(path.read_text(encoding="utf-8", errors="ignore"))
        texts += found
        total += sum(map(len, found))
    return texts


def source_code(characters: int) -> str:
    """Return modules of Python's standard library, in a fixed random order, until they have so many characters."""
    folder = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in folder.rglob("*.py") if not _NOT_LIBRARY & set(path.relative_to(folder).parts)]
    paths.sort()
    random.Random(0).shuffle(paths)
    texts: list[str] = []
    total = 0
    for path in paths:
        if total >= characters:
            break
        texts.append(path.read_text(encoding="utf-8", errors="ignore"))
        total += len(texts[-1])
    return "".join(texts)[:characters]


def sentences(texts: Sequence[str], count: int) -> list[str]:
    """Return the first `count` different sentences of 6 to 25 words."""
    found: dict[str, None] = {}
    for text in texts:
        found |= dict.fromkeys(_SENTENCE.findall(re.sub(r"\s+", " ", text) + " "))
        if len(found) >= count:
            break
    return list(found)[:count]


def words_of(texts: Sequence[str]) -> list[str]:
    """Return the vocabulary of texts, whole words: what stands in for that of MiniLM."""
    return [UNKNOWN, START, END, MASK, *sorted({word for text in texts for word in _WORD.findall(text.lower())})]


class WordPiece:
    """Text to token ids: lower case, words and signs apart, each word as its longest known pieces."""

    def __init__(self, vocabulary: Sequence[str]) -> None:
        self._ids = {token: number for number, token in enumerate(vocabulary)}
        self.start, self.end, self.mask = (self._ids[token] for token in (START, END, MASK))
        self._word = cache(self._pieces)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without start and end."""
        return [number for word in _WORD.findall(text.lower()) for number in self._word(word)]

    def _pieces(self, word: str) -> tuple[int, ...]:
        pieces, at = [], 0
        while at < len(word):
            prefix = "##" if at else ""
            ends = range(len(word), at, -1)
            end = next((end for end in ends if prefix + word[at:end] in self._ids), None)
            if end is None:
                return (self._ids[UNKNOWN],)
            pieces.append(self._ids[prefix + word[at:end]])
            at = end
        return tuple(pieces)

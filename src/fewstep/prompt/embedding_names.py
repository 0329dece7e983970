"""Where a text says the names of textual-inversion embeddings.

As in AUTOMATIC1111's web UI a name is written as it is, and the longest one counts. A name stands alone: it
is not read inside a longer word or number, and neither case nor the spaces around its punctuation matter.
There the tokens are compared, which finds ``cat`` in ``wildcat`` where the tokenizer divides the word so, and
misses ``<cat>`` before a comma that the tokenizer takes together with the bracket.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

MAX_NAME = 100
"""Characters of a name; longer ones are not read."""

_PIECE = re.compile(r"\w+|[^\w\s]")


class Names:
    """Names to look for; of two that are read alike the first counts.

    Args:
        names: in any order.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._by_first: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        seen: set[tuple[str, ...]] = set()
        for name in names:
            pieces = tuple(_PIECE.findall(name.lower()))
            if pieces and len(name) <= MAX_NAME and pieces not in seen:
                seen.add(pieces)
                self._by_first.setdefault(pieces[0], []).append((pieces, name))
        for candidates in self._by_first.values():
            candidates.sort(key=lambda one: (len(one[0]), len(one[1])), reverse=True)

    def split(self, text: str) -> list[tuple[str, str | None]]:
        """Divide a text at the names in it.

        Returns:
            Pairs of a stretch of the text and the name that it says, None for what lies between; all
            stretches together are the text.
        """
        if not self._by_first:
            return [(text, None)]
        places = list(_PIECE.finditer(text))
        words = [place[0].lower() for place in places]
        found: list[tuple[str, str | None]] = []
        done = index = 0
        while index < len(words):
            match = next((one for one in self._by_first.get(words[index], ())
                          if tuple(words[index : index + len(one[0])]) == one[0]), None)  # fmt: skip
            if match is None:
                index += 1
                continue
            begin, end = places[index].start(), places[index + len(match[0]) - 1].end()
            if begin > done:
                found.append((text[done:begin], None))
            found.append((text[begin:end], match[1]))
            done, index = end, index + len(match[0])
        if done < len(text) or not found:
            found.append((text[done:], None))
        return found

"""What was seen of data whose rows are no texts with a label each, for `start` and `check` to tell. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from memsup.shared.data.sources import Source


@dataclass(frozen=True, kw_only=True)
class SeenRows:
    """What was seen of a source. Where `complete` is False time ran out, and all counts are of the rows seen until then."""

    source: Source
    notes: tuple[str, ...]
    """What was decided about the source that a person might have meant otherwise, each a sentence."""
    rows: int
    """How many rows can be learnt from."""
    left_out: Mapping[str, int]
    """Rows left out, by why; each reason is the end of a sentence, such as `they have no answer`."""
    complete: bool
    learnt: str
    """What is learnt, in a few words, such as `the answers of 'messages'`."""
    about: tuple[tuple[str, str], ...]
    """What there is to say besides, as headings with their texts."""
    when_too_long: str = "cut"
    """What is done to rows that are too long."""
    labels: tuple[str, ...] = ()
    """What the outputs of the model are called, where each stands for a label."""
    text_chars: tuple[int, int, int, int]
    """The lengths of the rows in characters: median, 90 %, 99 %, longest."""
    token_estimates: Counter[int]
    """Number of rows by roughly how many tokens they make."""

    def share_cut(self, max_length: int) -> float:
        """The share of the rows that `max_length` tokens would cut, roughly, 0 to 1."""
        return sum(count for tokens, count in self.token_estimates.items() if tokens > max_length) / max(1, self.rows)


def estimate_tokens(text: str) -> int:
    """One for each Chinese character, a quarter for each letter, two around them. UTF-8 has three bytes for the former and
    one for the latter; good enough to say "about", and fast.
    """
    wide = (len(text.encode("utf-8")) - len(text)) // 2
    return wide + (len(text) - wide) // 4 + 2


def quantile(counts: Counter[int], share: float) -> int:
    """The smallest value that at least `share` of all do not exceed."""
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left <= 0:
            return value
    return max(counts)

"""How much text there is to read: one corpus, or the sources of a mixture, each read by its share.

A mixture repeats as soon as its scarcest source does, long before as many tokens are read as it has in all.
"""

from __future__ import annotations

from dataclasses import dataclass

from token_superposition.study.report.numbers import count_in_words


@dataclass(frozen=True)
class Source:
    """Tokens of one source, and the share of what a run reads that is taken from it; without a name, all of it."""

    num_tokens: int
    share: float = 1.0
    name: str = ""

    @property
    def once(self) -> float:
        """Raw tokens that a run reads, of all sources, until it has read this one once."""
        return self.num_tokens / self.share


@dataclass(frozen=True)
class Corpus:
    """The text of a run."""

    sources: tuple[Source, ...]

    @classmethod
    def of_tokens(cls, num_tokens: int) -> Corpus:
        """A single corpus."""
        return cls((Source(num_tokens),))

    @property
    def num_tokens(self) -> int:
        """Of all of it."""
        return sum(source.num_tokens for source in self.sources)

    @property
    def scarcest(self) -> Source:
        """The source that is read again first."""
        return min(self.sources, key=lambda source: source.once)

    def holds(self, raw_tokens: int) -> bool:
        """Whether so many are read without reading any text twice."""
        return raw_tokens <= self.scarcest.once

    def unique(self, raw_tokens: int) -> int:
        """How many of them are different."""
        return sum(min(round(raw_tokens * source.share), source.num_tokens) for source in self.sources)

    def __str__(self) -> str:
        """The scarcest part of it, to follow a verb."""
        scarcest = self.scarcest
        tokens = count_in_words(scarcest.num_tokens)
        if len(self.sources) == 1:
            return f"the corpus of {tokens} tokens"
        return f"source {scarcest.name} ({tokens} tokens, {scarcest.share:.0%} of what is read)"

"""Cuts between characters on token ids, for infilling."""

from itertools import pairwise

import numpy as np

from ..codegen2.infilling_codegen2 import encode_source


class TokenSplitter:
    """
    Cuts a piece of a file at characters instead of tokens, for [`Infill`] (FIM, arXiv 2207.14255, section 4.1).

    The words that a cut goes through are encoded anew, so that prefix, middle and suffix are made of the tokens that
    the tokenizer gives them at inference.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's.
    """

    MAX_WORD = 16  # tokens on either side of a cut that are encoded anew
    DRAWS = 2  # uniform numbers that a cut is made from

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        texts = [tokenizer.decode([token_id]) for token_id in range(len(tokenizer))]
        self._lengths = np.array([max(len(text), 1) for text in texts])
        self._is_part = np.array(["\ufffd" in text for text in texts])  # of a character, mostly
        self._begins_word = np.array([text[:1].isspace() for text in texts])

    def cut(self, token_ids, taken: int, room: int, rng) -> tuple[int, np.ndarray, list[int]] | None:
        """
        Cuts the first tokens of a file twice, uniformly over its characters.

        Args:
            token_ids (`numpy.ndarray` of shape `(tokens,)`): the file.
            taken (`int`): number of its tokens to cut, fewer where they would not fit once encoded anew.
            room (`int`): number of tokens the result may have.
            rng (`numpy.random.Generator`): draws the characters.

        Returns:
            `tuple`: the number of tokens taken, their ids as they are now, and the two cuts in these ids; `None` where
            no token fits.
        """
        draws = rng.random(self.DRAWS)
        while taken > 0:
            source, cuts = self._split(token_ids[:taken], draws)
            if len(source) <= room:
                return taken, source, cuts
            taken -= len(source) - room
        return None

    def _characters(self, token_ids, ends, draws):
        """The two characters of a piece to cut before, in order."""
        return (np.sort(draws) * (ends[-1] + 1)).astype(int)

    def _ends(self, token_ids):
        """The character that each token of a piece ends with; of tokens that share characters the first one has them."""
        lengths = self._lengths[token_ids]
        parts = self._is_part[token_ids].nonzero()[0]
        for run in np.split(parts, (np.diff(parts) > 1).nonzero()[0] + 1):
            if len(run):
                lengths[run] = 0
                lengths[run[0]] = len(self.tokenizer.decode(token_ids[run[0] : run[-1] + 1]))
        return lengths.cumsum()

    def _split(self, token_ids, draws):
        ends = self._ends(token_ids)
        parts, cuts, place = [], [], 0
        for characters, first, last in self._words(token_ids, ends, self._characters(token_ids, ends, draws)):
            text, start = self.tokenizer.decode(token_ids[first:last]), int(ends[first - 1]) if first else 0
            borders = [0, *(character - start for character in characters), len(text)]
            parts.append(token_ids[place:first])
            for begin, end in pairwise(borders):
                parts.append(np.array(encode_source(self.tokenizer, text[begin:end]), dtype=token_ids.dtype))
                cuts.append(sum(map(len, parts)))
            cuts.pop()  # the last border is the word's end, no cut
            place = last
        return np.concatenate((*parts, token_ids[place:])), cuts

    def _words(self, token_ids, ends, cuts):
        """
        The cuts (characters of the piece) with the first and last token of the word each goes through: an empty range
        where it lies between tokens, and one range for two cuts in the same word.
        """
        words = []
        for cut in cuts.tolist():
            token = int(ends.searchsorted(cut, side="right"))
            start = int(ends[token - 1]) if token else 0
            first, last = self._word_around(token_ids, ends, token) if cut > start else (token, token)
            cut = cut if first < last else start
            if words and words[-1][2] > first:
                before, begin, end = words.pop()
                words.append(([*before, cut], min(begin, first), max(end, last)))
            else:
                words.append(([cut], first, last))
        return words

    def _word_around(self, token_ids, ends, token):
        """Range of the tokens from the last one that begins with white space to the next; empty if it is not text."""
        lower, upper = max(token - self.MAX_WORD, 0), min(token + self.MAX_WORD, len(token_ids))
        begins = self._begins_word[token_ids[lower:upper]].nonzero()[0] + lower
        first = int(begins[begins <= token].max(initial=lower))
        last = int(begins[begins > token].min(initial=upper))
        text = self.tokenizer.decode(token_ids[first:last])
        if "\ufffd" in text or len(text) != ends[last - 1] - (ends[first - 1] if first else 0):
            return token, token  # a token that is a part of a character: cut before it
        return first, last

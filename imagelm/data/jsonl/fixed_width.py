"""Image bodies whose tokens all have one width → ids, without splitting the text into words.

One idea: `<Z_012> ` takes 8 bytes, so a body is an array of 64-bit words that differ only in their digits. The digits,
4 bits each, are the index of the id in a table; a body with anything else goes to the slow path, which explains what is
wrong with it.
"""

from __future__ import annotations

import numpy as np

from imagelm.tokens.vocabulary import Vocabulary, code_token

WIDTHS = (3, 4, 5)  # digits: with the three bytes before them they fit into a word
FIRST = code_token(0).index("0")
NUM_AROUND = len(code_token(0, width=1)) - 1  # characters around the digits
BLOCK = 1 << 15  # tokens decoded at once, so that the words stay in a core's cache


class BodyDecoder:
    """Decodes texts of codebook tokens, each followed by one space.

    Attributes:
        stride: Bytes of a token with its space; 0 if the vocabulary's tokens differ in width or are too wide.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        tokens = [vocabulary.tokens[i] for i in vocabulary.code_ids]
        widths = {len(token) for token in tokens}
        self.digits = min(widths) - NUM_AROUND
        self.stride = min(widths) + 1 if len(widths) == 1 and self.digits in WIDTHS else 0
        if not self.stride:
            return
        self.dtype = vocabulary.id_dtype
        self.table = np.full(16**self.digits, -1, dtype=np.int32)
        for token, i in zip(tokens, vocabulary.code_ids, strict=True):
            digits = token[FIRST : FIRST + self.digits]
            self.table[sum(int(digit) << (4 * place) for place, digit in enumerate(digits))] = i
        zero = (code_token(0, self.digits) + " ").encode()
        self.template = np.frombuffer(zero[:8], dtype="<u8")[0]
        # Bits that must be the template's: all but the lower halves of the digits.
        fixed = bytes(0xF0 if FIRST <= i < FIRST + self.digits else 0xFF for i in range(8))
        self.fixed = np.frombuffer(fixed, dtype="<u8")[0]
        self.rest = np.frombuffer(zero[8:], dtype=np.uint8)

    def decode(self, text: str) -> np.ndarray | None:
        """The ids of a text, shape (tokens,); None if it isn't only codebook tokens of the vocabulary's width."""
        if not self.stride or not text.isascii() or len(text) % self.stride:
            return None
        content = np.frombuffer(text.encode(), dtype=np.uint8)
        ids = np.empty(len(content) // self.stride, dtype=self.dtype)
        for start in range(0, len(ids), BLOCK):
            part = slice(start, start + BLOCK)
            if not self._decode(content[start * self.stride : part.stop * self.stride], ids[part]):
                return None
        return ids

    def _decode(self, content: np.ndarray, ids: np.ndarray) -> bool:
        columns = content.reshape(-1, self.stride)
        words = columns[:, :8].copy().view("<u8")[:, 0] if self.stride > 8 else content.view("<u8")
        words = words ^ self.template
        if (words & self.fixed).any() or (columns[:, 8:] != self.rest).any():
            return False
        index = np.zeros(len(words), dtype=np.uint64)
        for digit in range(self.digits):
            shift = 8 * (FIRST + digit) - 4 * digit
            index |= (words >> np.uint64(shift)) & np.uint64(0xF << (4 * digit))
        found = self.table.take(index.view(np.int64))
        ids[:] = found
        return bool((found >= 0).all())

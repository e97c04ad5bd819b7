"""The text front: turns the strings of a job into the token tensors that the model asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as _Tokenizer

from batchline.errors import ModelError

TOKEN_TENSORS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""The tensors that can be made from a text: the names that exporters give them -> the tokenizers library's."""


class Tokenizer:
    """One tokenizer file, loaded once. Safe for use by several threads.

    Padding is not done here: rows keep their own length, and the collation pads what runs together.
    """

    def __init__(self, file: Path | bytes, max_length: int) -> None:
        """Load a `tokenizer.json`.

        Args:
            file: a file in the format of the `tokenizers` library, or its bytes.
            max_length: most tokens of a row, special ones included; the rest is cut off at the end.

        Raises:
            ModelError: the file cannot be read, or max_length leaves no room for a token.
        """
        try:
            data = file.read_bytes() if isinstance(file, Path) else file
            self._tokenizer = _Tokenizer.from_buffer(data)
            self._tokenizer.no_padding()
            special = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            if max_length <= special:
                raise ModelError(
                    f"max_length is {max_length}: it must be above {special}, the special tokens of a text"
                )
            self._tokenizer.enable_truncation(max_length)
        except ModelError:
            raise
        except Exception as error:  # the library raises plain Exception
            name = f" {file.name}" if isinstance(file, Path) else ""
            raise ModelError(
                f"the tokenizer{name} cannot be read ({error}): put a tokenizer.json of the tokenizers library"
                " beside the model"
            ) from error

    def encode(self, texts: Sequence[str], inputs: Sequence[str]) -> dict[str, list[NDArray[np.int64]]]:
        """Turn B texts into the model's inputs.

        Args:
            texts: B strings; an empty one still has its special tokens.
            inputs: the names of the model's inputs, all among TOKEN_TENSORS.

        Returns:
            For each name B arrays [T_i] int64, in the order of the texts; T_i <= max_length.

        Raises:
            ModelError: the model has an input that cannot be made from a text.
        """
        strange = [name for name in inputs if name not in TOKEN_TENSORS]
        if strange:
            raise ModelError(f"input {strange[0]!r} cannot be made from a text: only {', '.join(TOKEN_TENSORS)} can")
        encodings = self._tokenizer.encode_batch(list(texts))
        return {
            name: [np.asarray(getattr(encoding, TOKEN_TENSORS[name]), dtype=np.int64) for encoding in encodings]
            for name in inputs
        }

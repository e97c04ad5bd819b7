"""The text front gives each row its own tokens, in the order of the rows, under the names that the model has."""

import numpy as np
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import models, normalizers, pre_tokenizers, processors

from batchline.errors import ModelError
from workers.text import Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "on", "mat", "##s"]
CLS, SEP, UNK = 2, 3, 1


@pytest.fixture
def path(tmp_path):
    """A tokenizer file as exporters leave it: with fixed padding and truncation of their own."""
    library = Library(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.normalizer = normalizers.Lowercase()
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)]
    )
    library.enable_padding(length=16)
    library.enable_truncation(4)
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_rows_keep_their_own_length_and_order(path):
    """No padding here, whatever the file says: that is for the collation."""
    rows = Tokenizer(path, 32).encode(["the cat sat on the mats", "Cat", "", "dog"], ["input_ids"])["input_ids"]
    assert [row.tolist() for row in rows] == [
        [CLS, 4, 5, 6, 7, 4, 8, 9, SEP],
        [CLS, 5, SEP],
        [CLS, SEP],
        [CLS, UNK, SEP],
    ]
    assert {row.dtype for row in rows} == {np.dtype(np.int64)}


def test_only_the_models_inputs_are_made(path):
    """A model without token_type_ids gets none; the mask is all ones, the types all zero."""
    tokenizer = Tokenizer(path, 32)
    assert list(tokenizer.encode(["the cat"], ["input_ids", "attention_mask"])) == ["input_ids", "attention_mask"]
    made = tokenizer.encode(["the cat"], ["token_type_ids", "attention_mask"])
    assert made["attention_mask"][0].tolist() == [1, 1, 1, 1]
    assert made["token_type_ids"][0].tolist() == [0, 0, 0, 0]


def test_long_text_is_cut_to_max_length_with_its_special_tokens(path):
    """max_length counts the special tokens, and the last one stays."""
    row = Tokenizer(path, 5).encode(["the cat sat on the mat"], ["input_ids"])["input_ids"][0]
    assert row.tolist() == [CLS, 4, 5, 6, SEP]


def test_no_texts_give_no_rows(path):
    """B = 0 is no special case."""
    assert Tokenizer(path, 8).encode([], ["input_ids"]) == {"input_ids": []}


def test_input_that_no_text_can_fill_is_named(path):
    """A model that wants pixels has no text front."""
    with pytest.raises(ModelError, match="'pixels' cannot be made from a text"):
        Tokenizer(path, 8).encode(["the"], ["input_ids", "pixels"])


def test_file_that_is_no_tokenizer_is_refused(tmp_path):
    """Absent or wrong: the message names the file and what belongs there."""
    (tmp_path / "wrong.json").write_text("{}")
    for name in ("wrong.json", "absent.json"):
        with pytest.raises(ModelError, match=f"{name} cannot be read"):
            Tokenizer(tmp_path / name, 8)


def test_max_length_must_leave_room_for_a_token(path):
    """Two of the tokens of a text are special ones."""
    with pytest.raises(ModelError, match="must be above 2"):
        Tokenizer(path, 2)

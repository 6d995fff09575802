"""T5's own SentencePiece, where the shared data has it."""

import json

from gr_jax.data import load_tokenizer


def test_t5_vocabulary_gives_t5_ids(shared_data):
    tokenizer = load_tokenizer(shared_data / "t5" / "spiece.model", words_only=False)
    expected = json.loads((shared_data / "t5" / "t5_base_encoded.json").read_text("utf-8"))
    ids = expected["token_ids"]
    assert ids[-1] == 1  # the end token is in the file's list
    assert tokenizer.encode([expected["text"]], len(ids))[0].tolist() == ids

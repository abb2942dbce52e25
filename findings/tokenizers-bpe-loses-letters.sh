#!/usr/bin/env bash
# A BPE tokenizer of Hugging Face's `tokenizers` whose file names no unknown token leaves out letters that its vocabulary
# lacks: no token, no error, no warning, and the ids look like those of a shorter text. One would expect an error, as its
# WordLevel and Unigram models give, or a token. The same file can say `truncation`, which cuts every text short, as
# silently, unless it is switched off after loading. Who makes tokens of texts must compare what they stand for with what
# was given, which byte-level tokenizers make possible, and drop `truncation`.
#
# Versions: tokenizers 0.23.3. Source: tokenizers/src/models/bpe/model.rs, merge_word(): without `unk_token` an unknown
# letter is passed over; documentation: "unk_token (optional): the unknown token to be used by the model".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PYTHON'
import sys

from tokenizers import Tokenizer, models, pre_tokenizers

vocabulary = {letter: i for i, letter in enumerate("abcdefghijklmnopqrstuvwxyz")}
TEXT = "naïve größe"


def tokens(model, truncated=False):
    made = Tokenizer(model)
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if truncated:
        made.enable_truncation(4)
    read = Tokenizer.from_str(made.to_str())  # as from tokenizer.json
    try:
        return read.encode(TEXT).tokens
    except Exception as error:
        return f"error: {error}"


bpe = tokens(models.BPE(vocab=vocabulary, merges=[]))
words = tokens(models.WordLevel(vocab=vocabulary, unk_token="?"))
unigram = tokens(models.Unigram([(letter, -1.0) for letter in vocabulary]))
cut = tokens(models.BPE(vocab=vocabulary, merges=[]), truncated=True)
print("text", TEXT)
print("BPE without unk_token: expected an error, seen", bpe)
print("WordLevel whose unk_token is not in its vocabulary:", words)
print("Unigram without unk_id:", unigram)
print("truncation that the file says: seen", cut)
if bpe != [letter for letter in TEXT if letter in vocabulary] or cut != bpe[:4]:
    sys.exit("this has changed")
PYTHON

import pickle

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.data import tokens as tokens_module
from fedhpc.data.tokens import CHUNK_TOKENS, LARGEST_VOCABULARY, TokenStore, holds_tokens, write_tokens
from fedhpc.data.windows import Windows
from fedhpc.errors import DataError

SHA = "ab" * 32
DOCUMENTS = ([1, 2, 3], [4, 0], [2, 2, 2, 2])


def make(path, documents=DOCUMENTS, vocabulary=5, **more):
    given_ = [np.array(d, np.int64) for d in documents]
    return write_tokens(path, given_, vocabulary=vocabulary, tokenizer_sha256=SHA, **more)


def refused(path, message):
    with pytest.raises(DataError, match=message) as caught:
        TokenStore.open(path)
    assert caught.value.hint
    assert str(path) in caught.value.what


def test_what_was_written_is_read(tmp_path):
    path = tmp_path / "a.h5"
    assert make(path, token_bytes=np.arange(5, dtype=np.uint16)) == (3, 9)
    assert path.stat().st_mode & 0o777 == 0o600
    assert holds_tokens(path)
    with TokenStore.open(path) as store:
        assert (store.n, store.vocabulary, store.tokenizer_sha256) == (9, 5, SHA)
        assert store.offsets.tolist() == [0, 3, 5, 9]
        assert store.token_bytes.tolist() == [0, 1, 2, 3, 4]
        assert store.tokens(2, 6).tolist() == [3, 4, 0, 2]
        assert pickle.loads(pickle.dumps(store)).tokens(0, 3).tolist() == [1, 2, 3]
    with h5py.File(path) as file:
        assert file["tokens"].dtype == np.uint16
        assert file["tokens"].chunks == (CHUNK_TOKENS,)
        assert file["documents"].dtype == np.int64


def test_large_vocabularies_have_32_bits(tmp_path):
    make(tmp_path / "a.h5", [[70000, 1]], vocabulary=70001)
    with TokenStore.open(tmp_path / "a.h5") as store:
        assert store.tokens(0, 2).tolist() == [70000, 1]
        assert store.tokens(0, 2).dtype == np.uint32
        assert store.token_bytes is None


def test_many_tokens_are_written_in_blocks_and_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "CHUNK_TOKENS", 8)
    monkeypatch.setattr(tokens_module, "_IN_MEMORY_BYTES", 0)
    documents = [np.full(n, n) for n in range(1, 30)]
    make(tmp_path / "a.h5", documents, vocabulary=30)
    whole = np.concatenate(documents)
    with TokenStore.open(tmp_path / "a.h5") as store:
        for start in range(0, whole.size, 7):
            np.testing.assert_array_equal(store.tokens(start, start + 7), whole[start : start + 7])


@pytest.mark.parametrize(
    ("documents", "vocabulary", "message"),
    [
        ([], 5, "no document"),
        ([[1], []], 5, "document 2 is empty"),
        ([[1], [5]], 5, "document 2 has a token outside 0 … 4"),
        ([[-1]], 5, "document 1 has a token outside"),  # a narrowing write would make it 0
        ([[1]], LARGEST_VOCABULARY + 1, "vocabulary"),
    ],
)
def test_what_cannot_be_written(tmp_path, documents, vocabulary, message):
    with pytest.raises(DataError, match=message):
        make(tmp_path / "a.h5", documents, vocabulary)
    assert list(tmp_path.iterdir()) == []


def replaced(file, name, value, **more):
    del file[name]
    file.create_dataset(name, data=value, **more)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: f["tokens"].__setitem__(6, 5),
            r"token 5 at position 6 \(document 2\) is outside the vocabulary",
        ),
        (lambda f: f.attrs.__setitem__("vocabulary", 3), r"token 3 at position 2 \(document 0\)"),
        (lambda f: f.attrs.__setitem__("vocabulary", 0), "a vocabulary of 0"),
        (lambda f: f.attrs.__delitem__("vocabulary"), "'vocabulary' is missing"),
        (lambda f: f.attrs.__setitem__("tokenizer_sha256", np.bytes_(b"AB" * 32)), "not a SHA-256"),
        (lambda f: f.attrs.__setitem__("format", np.bytes_(b"fedhpc-tokens/2")), "format 'fedhpc-tokens/2'"),
        (lambda f: f.attrs.__setitem__("schema_version", 1), "a store of rows"),
        (lambda f: f["documents"].__setitem__(0, 1), "documents go from 1 to 9"),
        (lambda f: f["documents"].__setitem__(3, 8), "documents go from 0 to 8, tokens from 0 to 9"),
        (lambda f: f["documents"].__setitem__(1, 6), "document 1 goes from token 6 to 5"),
        (lambda f: f["documents"].__setitem__(1, 5), "document 1 goes from token 5 to 5"),
        (lambda f: replaced(f, "documents", np.array([0], np.int64)), "documents have the shape"),
        (lambda f: replaced(f, "documents", np.arange(11)), "documents have the shape"),  # more than tokens
        (lambda f: replaced(f, "documents", np.array([0, 9], np.int32)), "int32"),
        (lambda f: replaced(f, "tokens", np.zeros((9, 1), np.uint16)), "tokens have the shape"),
        (lambda f: replaced(f, "tokens", np.zeros(0, np.uint16)), "tokens have the shape"),
        (lambda f: replaced(f, "tokens", np.zeros(9, np.int32)), "int32"),
        (lambda f: f.create_dataset("token_bytes", data=np.zeros(4, np.uint16)), "token_bytes have the shape"),
        (lambda f: f.__delitem__("tokens"), "'tokens' is missing"),
    ],
)
def test_damage_is_found_at_opening(tmp_path, damage, message):
    make(tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        damage(file)
    refused(tmp_path / "a.h5", message)


def test_a_file_that_is_cut_short_or_claims_too_much(tmp_path):
    path = tmp_path / "a.h5"
    make(path)
    path.write_bytes(path.read_bytes()[:-1000])
    refused(path, "cut short")
    with h5py.File(path, "w") as file:
        file.attrs["format"] = np.bytes_(b"fedhpc-tokens/1")
        file.attrs["vocabulary"] = 5
        file.attrs["tokenizer_sha256"] = np.bytes_(SHA.encode())
        file.create_dataset("tokens", (1 << 40,), np.uint16, chunks=(1 << 20,))
    refused(path, "claims")


def test_a_file_that_was_replaced_is_not_read(tmp_path):
    make(tmp_path / "a.h5")
    with TokenStore.open(tmp_path / "a.h5") as store:
        make(tmp_path / "a.h5", [[1, 1, 1]])
        with pytest.raises(DataError, match="changed while in use"):
            store.tokens(0, 1)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=12),
    st.data(),
    st.integers(1, 7),
)
def test_windows_cover_a_stream_of_documents_once(lengths, data, context):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, len(lengths) - 1)))), np.int64)
    stream = [p for d in chosen for p in range(offsets[d], offsets[d + 1])]
    windows = Windows(offsets, chosen, context)
    predicted = []
    for w in range(len(windows)):
        positions = [p for start, stop in windows.parts(w) for p in range(start, stop)]
        assert positions == stream[w * context : (w + 1) * context + 1]
        assert len(positions) >= 2
        predicted += positions[1:]
    assert predicted == stream[1:]
    with pytest.raises(IndexError):
        windows.parts(len(windows))

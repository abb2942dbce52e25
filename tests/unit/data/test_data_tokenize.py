import json

import pytest
from click.testing import CliRunner

from fedhpc.cli import cli
from fedhpc.data import tokenize as tokenize_module
from fedhpc.data.tokenize import tokenize
from fedhpc.data.tokenizer import Tokenizer, train_tokenizer
from fedhpc.data.tokens import TokenStore
from fedhpc.errors import ConfigError, DataError

WORDS = ["abnormal heart rate", "abnormality of the heart", "heart failure of the abnormal heart"] * 4


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("plain"), [])


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    return train_tokenizer(tmp_path_factory.mktemp("learnt"), WORDS, 280)


def changed(tmp_path, tokenizer, change):
    said = json.loads(tokenizer.path.read_bytes())
    change(said)
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    return tmp_path


def text(tmp_path, data, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def test_plain_bytes(plain, tmp_path):
    path = text(tmp_path, "Größe\n<|endoftext|> 漢字")
    done = tokenize([path], plain, tmp_path / "a.h5")
    assert plain.vocabulary == 257
    with TokenStore.open(tmp_path / "a.h5") as store:
        assert (done.documents, done.tokens) == (1, path.stat().st_size + 1)
        found = store.tokens(0, store.n)
        assert store.tokenizer_sha256 == plain.sha256
        assert found[-1] == plain.end_id()
        assert (found == plain.end_id()).sum() == 1  # not what the text says
        assert store.token_bytes[found].sum() == path.stat().st_size


def test_learnt_tokens_are_fewer_and_stand_for_the_same_bytes(learnt, tmp_path):
    path = text(tmp_path, "abnormal heart\nfailure of the Heärt\n")
    done = tokenize([path], learnt, tmp_path / "a.h5", unit="line")
    with TokenStore.open(tmp_path / "a.h5") as store:
        assert done.documents == 2
        assert store.n < 20
        assert store.token_bytes[store.tokens(0, store.n)].sum() == path.stat().st_size - 2


def test_the_same_texts_make_the_same_tokenizer(learnt, tmp_path):
    assert train_tokenizer(tmp_path, WORDS, 280).sha256 == learnt.sha256


def test_truncation_padding_and_dropout_are_left_out(learnt, tmp_path):
    def change(said):
        said["truncation"] = {"max_length": 2, "stride": 0, "strategy": "LongestFirst", "direction": "Right"}
        said["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x",
            "pad_to_multiple_of": None,
        }  # fmt: skip
        said["model"]["dropout"] = 0.9

    tokenizer = Tokenizer(changed(tmp_path, learnt, change))
    assert tokenizer.encode([WORDS[0]])[0].tokens.tolist() == learnt.encode([WORDS[0]])[0].tokens.tolist()
    assert tokenizer.sha256 != learnt.sha256


def test_bytes_are_known_only_where_nothing_of_a_text_is_changed(learnt, tmp_path):
    assert learnt.token_bytes is not None
    for change in (
        lambda said: said.update(normalizer={"type": "Lowercase"}),
        lambda said: said["pre_tokenizer"].update(add_prefix_space=True),
        lambda said: said.update(pre_tokenizer={"type": "Whitespace"}),
        lambda said: said["model"]["vocab"].pop("é"),
    ):
        assert Tokenizer(changed(tmp_path, learnt, change)).token_bytes is None


@pytest.mark.parametrize(
    ("data", "unit", "message"),
    [
        (b"fine\nna\xefve\n", "file", r"a\.txt, line 2: not UTF-8 \(byte 0xef\)"),
        (b"fine\nna\xefve\n", "line", r"a\.txt, line 2: not UTF-8 \(byte 0xef\)"),
        (b"", "file", r"a\.txt is empty"),
        (b"", "line", r"a\.txt is empty"),
        (b" \n\t", "file", r"a\.txt is empty"),
        (b"one\n\nthree\n", "line", r"a\.txt, line 2 is empty"),
        (b"123456789", "file", r"a\.txt: a document of more than"),
        (b"1\n123456789", "line", r"a\.txt, line 2: a document of more than"),
    ],
)
def test_texts_that_are_refused(plain, tmp_path, monkeypatch, data, unit, message):
    monkeypatch.setattr(tokenize_module, "LARGEST_DOCUMENT", 8 if b"123" in data else 100)
    with pytest.raises(DataError, match=message) as caught:
        tokenize([text(tmp_path, data)], plain, tmp_path / "a.h5", unit=unit)
    assert caught.value.hint
    assert not (tmp_path / "a.h5").exists()


def test_text_that_a_tokenizer_would_lose_in_silence(plain, learnt, tmp_path):
    path = text(tmp_path, "heart\nGr\u00f6\u00dfe, heart!\n")

    def whitespace(said):
        said["pre_tokenizer"] = {"type": "Whitespace"}
        for letter in "\u00f6\u00df!":
            said["model"]["vocab"].pop(letter, None)

    with pytest.raises(DataError, match=r"a\.txt, line 2: its tokens leave out 2 letters that the tokenizer") as caught:
        tokenize([path], Tokenizer(changed(tmp_path, plain, whitespace)), tmp_path / "a.h5", unit="line")
    assert "another tokenizer" in caught.value.hint
    known = Tokenizer(changed(tmp_path, plain, lambda said: said.update(normalizer={"type": "Lowercase"})))
    assert known.encode(["Heart!"])[0].lost == ""


def test_a_tokenizer_that_knows_no_word_for_unknown_ones(plain, tmp_path):
    def words(said):
        said |= {"pre_tokenizer": {"type": "Whitespace"}}
        said["model"] = {"type": "WordLevel", "vocab": {"heart": 257}, "unk_token": "?"}

    with pytest.raises(DataError, match="cannot make tokens of a text"):
        tokenize([text(tmp_path, "the heart")], Tokenizer(changed(tmp_path, plain, words)), tmp_path / "a.h5")


def test_a_mark_and_line_ends_of_windows_are_no_text(plain, tmp_path):
    done = tokenize([text(tmp_path, b"\xef\xbb\xbfab\r\ncd\r\n")], plain, tmp_path / "a.h5", unit="line")
    assert (done.documents, done.tokens) == (2, 6)


def test_what_is_read_is_not_written_over(plain, tmp_path):
    path = text(tmp_path, "a heart")
    (tmp_path / "b.txt").symlink_to(path)
    for out in (path, tmp_path / "b.txt", plain.path):
        before = out.read_bytes()
        with pytest.raises(ConfigError, match="would be written over"):
            tokenize([path], plain, out)
        assert out.read_bytes() == before
    with pytest.raises(ConfigError, match="is a folder"):
        tokenize([path], plain, tmp_path)


def test_a_token_too_long_for_the_store_s_lengths(learnt, tmp_path):
    folder = changed(tmp_path, learnt, lambda said: said["model"]["vocab"].update({"a" * 70_000: 280}))
    assert Tokenizer(folder).token_bytes is None


def test_tokenizers_that_are_refused(learnt, tmp_path):
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        Tokenizer(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"has no tokenizer\.json"):
        Tokenizer(tmp_path)
    for data in ("", "{}", "[]", '{"model": {}}'):
        text(tmp_path, data, "tokenizer.json")
        with pytest.raises(DataError, match="is no tokenizer"):
            Tokenizer(tmp_path)
    folder = changed(tmp_path, learnt, lambda said: said["model"]["vocab"].update(far=2**32 - 2))
    with pytest.raises(DataError, match="token 'far' has the id 4294967294"):
        Tokenizer(folder)
    with pytest.raises(ConfigError, match="has no token '</s>'") as caught:
        learnt.end_id("</s>")
    assert "<|endoftext|>" in caught.value.hint
    with pytest.raises(ConfigError, match="exists"):
        train_tokenizer(tmp_path, [])


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text(tmp_path, "abnormal heart\n", "b.txt")
    text(tmp_path, "\n".join(WORDS), "words.txt")

    def run(*words):
        return CliRunner().invoke(cli, ["data", *words], catch_exceptions=False, standalone_mode=False).output

    assert "vocabulary = 270" in run("new-tokenizer", "tok", "words.txt", "--vocabulary", "270")
    out = run("tokenize", "b.txt", "words.txt", "--tokenizer", "tok", "--out", "a.h5", "--documents", "line")
    assert out.startswith("wrote a.h5: 13 documents, ")
    assert Tokenizer(tmp_path / "tok").sha256 in out
    assert "bytes of each token: known" in run("check", "a.h5")
    run("new-tokenizer", "other")
    run("tokenize", "b.txt", "--tokenizer", "other", "--out", "b.h5")
    with pytest.raises(DataError, match=r"different tokenizers: tokenizer_sha256 .*; vocabulary 270 and 257"):
        run("check", "a.h5", "b.h5")
    with pytest.raises(ConfigError, match="go together"):
        run("new-tokenizer", "third", "--vocabulary", "300")

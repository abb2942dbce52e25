"""[container] of federation.toml: which images it lists, and who is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from harness import FEDHPC, call, write_federation

from fedhpc.agreement.federation_file import Agreement
from fedhpc.agreement.images import MOST_IMAGES, SHA256_VARIABLE, AgreedImages, read_images
from fedhpc.config import parse_toml, refuse_other_file
from fedhpc.errors import ConfigError, PolicyError

ONE, TWO = "1" * 64, "2" * 64


def test_the_list_is_read_and_is_part_of_what_is_signed(tmp_path: Path) -> None:
    path = write_federation(tmp_path, 1, stores=False)
    bare = Agreement.open(path)
    path.write_text(path.read_text() + f'\n[container]\ncpu = "sha256:{ONE}"\ncuda = "sha256:{TWO}"\n')
    listed = Agreement.open(path)
    assert (bool(bare.images), bool(listed.images)) == (False, True)
    assert listed.images.names == {"cpu": ONE, "cuda": TWO}
    assert (listed.images.name_of(TWO), listed.images.name_of("3" * 64)) == ("cuda", "")
    assert bare.hash != listed.hash


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[container]", "lists no image"),
        ("container = 1", "must be a table"),
        (f'[container]\nCPU = "sha256:{ONE}"', "container: the name = 'CPU'"),
        (f'[container]\n"a b" = "sha256:{ONE}"', "container: the name"),
        (f'[container]\ncpu = "{ONE}"', r"container\.cpu is not the digest"),
        (f'[container]\ncpu = "sha256:{ONE[1:]}"', "is not the digest"),
        ('[container]\ncpu = "sha256:' + "A" * 64 + '"', "is not the digest"),
        (f'[container]\ncpu = "sha512:{ONE}"', "is not the digest"),
        ("[container]\ncpu = 1", "is not the digest"),
        (f'[container]\ncpu = "sha256:{ONE}"\nalso = "sha256:{ONE}"', "cpu and also are the same image"),
        ("[container]\n" + "\n".join(f'i{n} = "sha256:{n:064x}"' for n in range(MOST_IMAGES + 1)), "at most"),
    ],
)
def test_what_cannot_be_a_list_of_images(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read_images(parse_toml(text.encode(), "x").get("container"))
    assert refused.value.hint
    with pytest.raises(ConfigError, match=words):
        raise ConfigError(f"{refused.value.what}, {refused.value.hint}")


def test_as_many_as_may_be_listed() -> None:
    assert len(read_images({f"i{n}": f"sha256:{n:064x}" for n in range(MOST_IMAGES)}).names) == MOST_IMAGES


def test_the_table_belongs_to_a_federation_toml() -> None:
    with pytest.raises(ConfigError, match="x is a federation"):
        refuse_other_file({"container": {}}, ("site",), "x", "a site file")


def test_without_a_list_nothing_is_required() -> None:
    images = AgreedImages()
    images.require_here({})
    images.require_here({SHA256_VARIABLE: "nonsense"})
    images.require("3" * 64, "an image")


def test_a_process_must_say_that_it_is_in_a_listed_image() -> None:
    images = AgreedImages({"cpu": ONE})
    images.require_here({SHA256_VARIABLE: ONE})
    for said, words in (("", "is not set"), ("\x1b[2J", "is no SHA-256"), (TWO, f"has the SHA-256 {TWO}")):
        with pytest.raises(PolicyError, match=words) as refused:
            images.require_here({SHA256_VARIABLE: said} if said else {})
        assert f"cpu sha256:{ONE}" in refused.value.hint
        assert refused.value.what.isprintable()


def test_a_run_outside_the_listed_images_is_refused(tmp_path: Path) -> None:
    path = write_federation(tmp_path, 1, rounds=1)
    path.write_text(path.read_text() + f'\n[container]\ncpu = "sha256:{ONE}"\n')
    words = [*FEDHPC, "run", path, "--sites", tmp_path / "sites", "--out", tmp_path / "run"]
    call(words).refused(77, "in none of them", f"listed: cpu sha256:{ONE}")
    call(words, env={SHA256_VARIABLE: TWO}).refused(77, "does not list", f"cpu sha256:{ONE}")
    assert not (tmp_path / "run").exists()
    call(words, env={SHA256_VARIABLE: ONE}).ok()
    assert "cpu of federation.toml" in (tmp_path / "run" / "aa" / "log.jsonl").read_text()

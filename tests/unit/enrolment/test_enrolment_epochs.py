"""What `fedhpc federation next`, `revoke` and `admit` write: what an epoch begins from, its seed, its weights."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from enrolment_fakes import SITES, Enrolment
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.agreement.federation_file import PROTOCOL_NAME, Agreement, read_agreement
from fedhpc.agreement.run_folder import run_place
from fedhpc.cli.federation import federation as command
from fedhpc.enrolment.draft import Draft
from fedhpc.enrolment.federation_text import MARK, drop_value, set_value
from fedhpc.enrolment.next_epoch import Beginning, following
from fedhpc.enrolment.rehearsal import Rehearsal, open_folder
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.secure.keys import identity_public, new_identity
from fedhpc.train.settings import TaskSettings, TrainSettings, depends_on_seed

FOUR = (*SITES, "dd")


@pytest.fixture
def four(tmp_path: Path) -> Enrolment:
    """Four sites that are in the roster."""
    made = Enrolment(tmp_path, FOUR)
    made.admit()
    return made


def read(enrolment: Enrolment) -> Agreement:
    return read_agreement(enrolment.federation.read_bytes(), "federation.toml")


def digest(source: bytes) -> str:
    return hashlib.sha256(source).hexdigest()


def identities(agreement: Agreement) -> tuple[str, ...]:
    return tuple(entry.identity.hex() for entry in agreement.roster)


def join(enrolment: Enrolment, name: str) -> None:
    enrolment.tokens[name], enrolment.sites[name] = enrolment.coordinator.invite(name), enrolment.site(name)
    enrolment.admit(name)


# --- next


def test_next_goes_on_from_the_model_before_with_a_new_seed(four: Enrolment) -> None:
    before, source = read(four), four.federation.read_bytes()
    granted = four.coordinator.next_epoch(Beginning(rounds=7))
    after = read(four)
    assert (after.federation.epoch, after.federation.previous) == (1, digest(source))
    assert (after.start.from_, after.start.model) == ("previous", "")
    assert after.start.epochs == (digest(source),)
    assert after.start.sites == identities(before)
    assert (after.federation.seed != before.federation.seed, after.federation.rounds) == (True, 7)
    assert after.strategy.weights == "samples"  # the same sites: their W is taken over
    assert (granted.notes, granted.problem) == ((), "")
    assert (four.coordinator.folder / "epochs" / "0.toml").read_bytes() == source


def test_seeds_are_drawn_and_not_counted(four: Enrolment) -> None:
    seeds = {read(four).federation.seed}
    for _ in range(4):
        four.coordinator.next_epoch()
        seeds.add(read(four).federation.seed)
    assert len(seeds) == 5


def test_peoples_comments_and_values_stay(four: Enrolment) -> None:
    four.edit("lr = 0.5", "lr = 0.25  # ours")
    four.edit("seed = 0  ", "seed = 0  # a good one")
    four.coordinator.next_epoch()
    text = four.federation.read_text()
    assert "lr = 0.25  # ours" in text
    assert "# a good one" in text
    assert text.count("[start]") == 1
    four.coordinator.next_epoch()
    assert four.federation.read_text().count("[start]") == 1


def test_an_epoch_that_was_never_run_is_passed_over(four: Enrolment) -> None:
    """Nobody here knows which epochs have run, so all are named; certain is who was there in all of them."""
    first = identities(read(four))
    four.coordinator.revoke("aa", reinvite=False)
    second = four.federation.read_bytes()
    join(four, "ee")
    third = four.federation.read_bytes()
    four.coordinator.next_epoch()
    after = read(four)
    assert after.names == ["bb", "cc", "dd", "ee"]
    assert after.start.epochs[:2] == (digest(third), digest(second))
    assert len(after.start.epochs) == 3
    assert after.start.sites == first[1:]
    assert after.start.giver(identities(after)) == 1


def test_the_giver_is_the_lowest_of_the_old_roster_that_is_in_the_new_one(four: Enrolment) -> None:
    four.coordinator.revoke("aa", reinvite=False)
    four.coordinator.revoke("bb", reinvite=False)
    join(four, "ee")
    after = read(four)
    assert after.names == ["cc", "dd", "ee"]
    assert after.names[after.start.giver(identities(after)) - 1] == "cc"


def test_nobody_goes_on_where_nobody_is_left_of_the_old_roster(four: Enrolment) -> None:
    draft = Draft.read(four.federation.read_bytes())
    entries = {name: {"name": name, "sign": identity_public(new_identity()).hex()} for name in ("xx", "yy", "zz")}
    with pytest.raises(ConfigError, match="no site of the new roster was in the old one"):
        following(draft, [], entries, Beginning())


def test_a_draft_without_keys_has_no_next_epoch(tmp_path: Path) -> None:
    new = Enrolment(tmp_path)
    before = new.federation.read_bytes()
    with pytest.raises(ConfigError, match="nobody has signed"):
        new.coordinator.next_epoch()
    assert new.federation.read_bytes() == before


# --- weights, and what is asked


def test_another_roster_does_not_take_the_old_weights(four: Enrolment) -> None:
    """Shares of a W over other sites add up to .885 or 1.555, and a new W beside the old one is a site's size."""
    _, granted, _ = four.coordinator.revoke("dd", reinvite=False)
    assert granted is not None
    assert read(four).strategy.weights == "uniform"
    assert any("uniform" in note for note in granted.notes)
    assert any("the class train, measured show" in note for note in granted.notes)


def test_declared_samples_become_the_weights(four: Enrolment) -> None:
    for number, name in enumerate(FOUR, start=1):
        four.edit(f'name = "{name}"\n', f'name = "{name}"\nsamples = {100 * number}\n')
    four.coordinator.revoke("aa", reinvite=False)
    after = read(four)
    assert after.strategy.weights == "declared"
    assert [entry.samples for entry in after.roster] == [200, 300, 400]


def test_a_new_w_is_summed_if_all_accept_its_difference(four: Enrolment) -> None:
    _, granted, _ = four.coordinator.revoke("dd", reinvite=False, accept=("weights", "train"))
    assert granted is not None
    after = read(four)
    assert (after.strategy.weights, after.secure.accept_difference) == ("samples", ("weights", "train"))
    assert any("the class measured show" in note for note in granted.notes)


def test_accepting_afterwards_brings_the_private_weights_back(four: Enrolment) -> None:
    four.coordinator.revoke("dd", reinvite=False, accept=("train",))
    granted = four.coordinator.next_epoch(Beginning(accept=("weights",)))
    after = read(four)
    assert (after.strategy.weights, after.secure.accept_difference) == ("samples", ("train", "weights"))
    assert any("a new W is summed" in note for note in granted.notes)


def test_what_was_accepted_for_one_roster_is_not_for_the_next(four: Enrolment) -> None:
    join(four, "ee")
    four.coordinator.next_epoch(Beginning(accept=("measured",)))
    four.coordinator.next_epoch()
    assert read(four).secure.accept_difference == ("measured",)
    four.coordinator.revoke("ee", reinvite=False)
    assert read(four).secure.accept_difference == ()


# --- again, and from scratch


def test_again_is_a_fresh_run_with_another_seed(four: Enrolment) -> None:
    seed = read(four).federation.seed
    granted = four.coordinator.next_epoch(Beginning("again"))
    after = read(four)
    assert (after.start.from_, after.start.model) == (None, "")
    assert after.federation.seed != seed
    assert granted.notes == ()
    four.coordinator.next_epoch()
    assert read(four).start.from_ == "previous"
    four.coordinator.next_epoch(Beginning("again"))
    assert "[start]" not in four.federation.read_text()


def test_again_is_refused_for_another_roster(four: Enrolment) -> None:
    four.coordinator.revoke("dd", reinvite=False)
    before = four.federation.read_bytes()
    with pytest.raises(ConfigError, match="the roster is not that of epoch 0") as refused:
        four.coordinator.next_epoch(Beginning("again"))
    assert "--from-scratch" in refused.value.hint
    assert four.federation.read_bytes() == before


def test_from_scratch_is_refused_where_the_old_sums_would_come_again(four: Enrolment) -> None:
    """The shipped example: full batches, and a model that begins with zeros."""
    four.coordinator.next_epoch(Beginning("scratch"))  # the same sites: nothing is shown by it
    four.coordinator.revoke("dd", reinvite=False)
    before = four.federation.read_bytes()
    with pytest.raises(PolicyError, match="does not depend on the seed"):
        four.coordinator.next_epoch(Beginning("scratch"))
    assert four.federation.read_bytes() == before
    four.edit("batch_size = 0  ", "batch_size = 8  ")
    granted = four.coordinator.next_epoch(Beginning("scratch"))
    assert read(four).start.from_ is None
    assert any("train, measured, standardise" in note for note in granted.notes)


@pytest.mark.parametrize(
    ("task", "batch_size", "rows", "depends"),
    [
        ("logistic", 0, 0, False),
        ("logistic", 8, 0, True),
        ("logistic", 8, 8, False),  # every batch is all rows
        ("logistic", 8, 9, False),  # the last row joins them
        ("logistic", 8, 10, True),
        ("logistic", 1, 1, False),
        ("logistic", 1, 2, True),
        ("mlp", 0, 0, True),
        ("cnn", 0, 5, True),
        ("module", 0, 0, False),  # nobody knows how its model begins
        ("module", 4, 0, True),
    ],
)
def test_whether_a_first_update_depends_on_the_seed(task: Any, batch_size: int, rows: int, depends: bool) -> None:
    settings = TaskSettings(task, source_sha256="0" * 64 if task == "module" else "")
    assert depends_on_seed(settings, TrainSettings(0.1, batch_size=batch_size, local_steps=1), rows) is depends


# --- the section itself


H, SITE = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    ("start", "told"),
    [
        (f'from = "previous"\nepochs = ["{H}"]\nsites = ["{SITE}"]', "does not begin with federation.previous"),
        ('from = "previous"', "belong together"),
        (f'epochs = ["{H}"]', "belong together"),
        (f'model = "{H[1:]}"', "start.model holds no SHA-256"),
        (f'from = "previous"\nmodel = "{H}"\nepochs = ["{H}"]\nsites = ["{SITE}"]', "both from and model"),
        (f'from = "scratch"\nepochs = ["{H}"]\nsites = ["{SITE}"]', "start.from = 'scratch'"),
        (f'from = "previous"\nepochs = ["{H}", "{H}"]\nsites = ["{SITE}"]', "one twice"),
        (f'form = "previous"\nepochs = ["{H}"]', "unknown key 'form'"),
    ],
)
def test_a_start_that_people_broke_is_refused(four: Enrolment, start: str, told: str) -> None:
    text = four.federation.read_text().replace(MARK, f"[start]\n{start}\n\n{MARK}")
    with pytest.raises(ConfigError, match=told):
        read_agreement(text.encode(), "federation.toml")


def test_a_roster_without_anybody_who_has_the_model_is_refused(four: Enrolment) -> None:
    four.coordinator.next_epoch()
    text = four.federation.read_text()
    for identity in identities(read(four)):
        text = text.replace(identity, hashlib.sha256(identity.encode()).hexdigest())
    with pytest.raises(ConfigError, match="no site of the roster has the model"):
        read_agreement(text.encode(), "federation.toml")


@pytest.mark.parametrize("spoken", ["fedhpc-secagg/1", "fedhpc-secagg/2"])
def test_another_protocol_is_gone_on_from_by_a_file_only(four: Enrolment, spoken: str) -> None:
    four.edit(f'protocol = "{PROTOCOL_NAME}"', f'protocol = "{spoken}"')
    with pytest.raises(ConfigError, match="another protocol") as refused:
        four.coordinator.next_epoch()
    assert "--from-model" in refused.value.hint
    assert "ledger adopt" in refused.value.hint
    four.coordinator.next_epoch(Beginning("model", H))
    assert read(four).start.model == H
    assert read(four).federation.protocol == PROTOCOL_NAME


def test_every_epoch_has_a_run_directory_of_its_own(four: Enrolment) -> None:
    assert run_place(four.federation, read(four)) == four.federation.parent / "run"
    four.coordinator.next_epoch()
    assert run_place(four.federation, read(four)) == four.federation.parent / "run-1"
    assert run_place(four.federation, read(four), Path("x")) == Path("x")


# --- a rehearsal's folder


@pytest.fixture
def rehearsal(tmp_path: Path) -> Path:
    """As `fedhpc new` writes it, without data: no line for the roster, no epoch."""
    roster = "".join(f'\n[[site]]\nname = "{n}"\nsign = "{identity_public(new_identity()).hex()}"\n' for n in FOUR)
    head = (
        f'# ours\n[federation]\nname = "h"\nprotocol = "{PROTOCOL_NAME}"\n[task]\nname = "logistic"\n[train]\nlr = 1\n'
    )
    (tmp_path / "federation.toml").write_text(f"{head}local_steps = 1\nbatch_size = 0\n# The roster.{roster}")
    (tmp_path / "sites").mkdir()
    for name in FOUR:
        (tmp_path / "sites" / f"{name}.toml").write_text(f'[site]\nname = "{name}"\n')
    return tmp_path


def test_a_rehearsal_has_epochs_too(rehearsal: Path) -> None:
    file = rehearsal / "federation.toml"
    first = file.read_bytes()
    done = CliRunner().invoke(command, ["next", str(rehearsal), "--rounds", "3"])
    assert (done.exit_code, done.exception) == (0, None), done.output
    after = read_agreement(file.read_bytes(), "f")
    assert after.start.epochs == (after.federation.previous,) == (digest(first),)  # of the file as it ran
    assert (after.federation.epoch, after.federation.rounds) == (1, 3)
    assert file.read_text().startswith("# ours\n")
    assert (rehearsal / "epochs" / "0.toml").read_bytes() == first


def test_a_site_leaves_a_rehearsal(rehearsal: Path) -> None:
    done = CliRunner().invoke(command, ["revoke", str(rehearsal), "bb", "--accept-difference", "train"])
    assert (done.exit_code, done.exception) == (0, None), done.output
    after = read_agreement((rehearsal / "federation.toml").read_bytes(), "f")
    assert after.names == ["aa", "cc", "dd"]
    assert after.secure.accept_difference == ("train",)
    assert after.strategy.weights == "uniform"
    assert sorted(p.name for p in (rehearsal / "sites").iterdir()) == ["aa.toml", "bb.toml.left", "cc.toml", "dd.toml"]
    folder = open_folder(rehearsal)
    assert isinstance(folder, Rehearsal)
    with pytest.raises(ConfigError, match="no site 'bb' is in the roster"):
        folder.leave("bb", ())


def test_options_that_exclude_each_other(rehearsal: Path) -> None:
    for words in (["--again", "--from-scratch"], ["--public"], ["--again", "--from-model", "m"]):
        done = CliRunner().invoke(command, ["next", str(rehearsal), *words])
        assert isinstance(done.exception, ConfigError), done.output


# --- the text


NAMES = st.sampled_from(["lr", "mode", "seed", "list"])


@given(
    st.lists(
        st.tuples(NAMES, st.sampled_from(['"x"', "3", "1e-3", '["a", "b"]', "true", '[\n "a",\n]'])),
        unique_by=lambda t: t[0],
    ),
    NAMES,
    st.one_of(st.integers(0, 9), st.sampled_from(["", "abc"]), st.lists(st.sampled_from(["p", "q"]), max_size=2)),
    st.booleans(),
)
def test_one_value_changes_and_nothing_else(lines: list[tuple[str, str]], key: str, value: Any, there: bool) -> None:
    body = "".join(f"{name} = {text}  # why {name}\n" for name, text in lines)
    text = f'[first]\nlr = 1 # one\n\n[section]\n{body}\n[last] # z\nseed = "q"\n' if there else "[first]\nlr = 1\n"
    changed = set_value(text, "section", key, value)
    before, after = tomllib.loads(text), tomllib.loads(changed)
    assert after.pop("section") == before.pop("section", {}) | {key: value}
    assert after == before
    assert all(f"# why {name}" in changed for name, _ in lines if there)
    gone = tomllib.loads(drop_value(changed, "section", key))
    assert key not in gone.get("section", {})


def test_a_value_that_cannot_be_found_is_written_by_people() -> None:
    with pytest.raises(ConfigError, match=r"no line for train\.lr"):
        set_value("train = { lr = 1 }\n", "train", "lr", 2)

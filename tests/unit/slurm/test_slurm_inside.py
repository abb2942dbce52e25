"""What a job's script shows of the host inside its image, seen from there: a stand-in for Apptainer binds in order."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from harness import Completed, call, edit
from rooted_apptainer import needs_roots, write_apptainer
from slurm_fakes import plan_of, script, write_site

from fedhpc.agreement.run_folder import FEDERATION_FILE
from fedhpc.ledger.home import LedgerHome
from fedhpc.ledger.stores import remember_home
from fedhpc.slurm.image import Image
from fedhpc.slurm.scripts import Shape

LOOK = """
import json, os, sys
def rights(path):
    if not os.path.exists(path):
        return ""
    return "w" if os.access(path, os.W_OK) else "r"
print(json.dumps({path: rights(path) for path in sys.argv[1:]}))
"""


@pytest.fixture(autouse=True)
def roots() -> None:
    needs_roots()


def site_in(folder: Path, **section: Any) -> Path:
    """A site whose files are all there."""
    container = {"image": "cpu.sif", "python": sys.executable, **section}
    site = write_site(folder, slurm={"container": container})
    (folder / "data").mkdir(exist_ok=True)
    (folder / "data" / "aa.h5").touch()
    (site.parent / "cpu.sif").write_bytes(b"sif")
    return site


def look(site: Path, *paths: Path | str, shape: Shape | None = None, **env: str) -> dict[str, str]:
    """What the ranks see at each path: "w", "r", or "" if it is not there."""
    done = enter(site, paths, shape=shape, **env).ok()
    return dict(json.loads(done.out.splitlines()[-1]))


def enter(site: Path, paths: Iterable[Path | str], *, shape: Shape | None = None, **env: str) -> Completed:
    """Run what leads into the image in a job's script, and look there."""
    # The relay's folder, and whatever else the script is about, is where its own variables say.
    text = script(site, shape=shape, image=Image(site.parent / "cpu.sif", hashlib.sha256(b"sif").hexdigest()))
    around = site.parent.parent.parent / "around"
    around.mkdir(exist_ok=True)
    write_apptainer(around / "bin" / "apptainer", around / "calls")
    names, _, rest = text.partition("\nname=")[2].partition("\n")
    assert names
    variables = rest.partition("\n\n")[0]
    entering = "# All of fedhpc" + rest.partition("# All of fedhpc")[2].partition("\n)\n\n")[0]
    body = f'set -uo pipefail\nsay() {{ echo "$@"; }}\ndrop_successors() {{ echo dropped; }}\n{variables}\n{entering}'
    body = body.rpartition("inside=(")[0] + "inside=(" + body.rpartition("inside=(")[2].partition("\n)")[0] + "\n)\n"
    plan_of(site).jobs.mkdir(parents=True, exist_ok=True)
    file = around / "script"
    file.write_text(f'{body}exec "${{inside[@]}}" -c "$@"\n')
    where = {"PATH": f"{around}/bin:/usr/sbin:/usr/bin:/sbin:/bin", "XDG_DATA_HOME": str(around / "home"), **env}
    return call(["bash", file, LOOK, *map(str, paths)], env=where)


def test_nothing_is_seen_but_what_was_bound(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    folder = tmp_path / "fed"
    (folder / "other").mkdir()
    seen = look(site, folder / "other", site, folder / FEDERATION_FILE, folder / "run", folder / "data" / "aa.h5")
    assert list(seen.values()) == ["", "r", "r", "w", "r"]


def test_the_users_binds_cover_nothing_that_is_written(tmp_path: Path) -> None:
    """A site whose folder holds the ledger, and a user who binds all of it read-only."""
    home = tmp_path / "fed"
    data = home / "sites" / ".local" / "share"
    models = home / "models"
    models.mkdir(parents=True)
    (models / "m").touch()
    (home / "sites" / "models").mkdir(parents=True)
    site = site_in(home, binds=[f"{home}:ro", f"{models}:{home}/sites/models"])
    edit(site, site.read_text().partition("[ledger]")[2].splitlines()[1], "")
    seen = look(site, home / "run", data / "fedhpc", models, home / "sites" / "models" / "m", XDG_DATA_HOME=str(data))
    assert list(seen.values()) == ["w", "w", "r", "w"]


def test_links_are_followed_on_every_way(tmp_path: Path) -> None:
    """Folders that are links, `..` behind one, links to links, and a snapshot whose entries lead to blobs."""
    real = tmp_path / "pfs" / "fed"
    site = site_in(real)
    names = tmp_path / "home"
    names.mkdir()
    (names / "sites").symlink_to(real / "sites")
    (tmp_path / "cur").symlink_to(tmp_path / "pfs")
    (tmp_path / "pfs" / "conf").mkdir()
    site.rename(tmp_path / "pfs" / "conf" / "aa.toml")
    site.symlink_to(tmp_path / "cur" / "conf" / "aa.toml")
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "1"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (blobs / "h").touch()
    (snapshot / "m.safetensors").symlink_to("../../blobs/h")
    edit(site, "[data]", f"[data]\nweights = '{snapshot}'")
    (names / FEDERATION_FILE).symlink_to(real / FEDERATION_FILE)
    seen = look(
        names / "sites" / "aa.toml",
        *(names / "sites" / "aa.toml", names / "sites" / ".." / "data" / "aa.h5", snapshot / "m.safetensors"),
        *(real / "data" / "aa.h5", names / FEDERATION_FILE),
    )
    assert list(seen.values()) == ["r"] * 5


def test_what_is_no_longer_there_is_left_to_fedhpc(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    edit(site, "[data]", f"[data]\nstart_model = '{tmp_path}/gone.safetensors'")
    (tmp_path / "fed" / "data" / "aa.h5").unlink()
    assert look(site, tmp_path / "fed" / "data" / "aa.h5", site) == {f"{tmp_path}/fed/data/aa.h5": "", str(site): "r"}


def test_the_runs_of_earlier_epochs_are_seen(tmp_path: Path) -> None:
    """One beside this run, one where the ledger says that it was."""
    site = site_in(tmp_path / "fed")
    federation = tmp_path / "fed" / FEDERATION_FILE
    hashes = []
    for place in (tmp_path / "fed" / "before", tmp_path / "far" / "run"):
        (place / "aa").mkdir(parents=True)
        (place / FEDERATION_FILE).write_text(f"# {place.name}")
        hashes.append(hashlib.sha256((place / FEDERATION_FILE).read_bytes()).hexdigest())
    runs = tmp_path / "fed" / "ledger" / "aa" / "runs"
    runs.mkdir(parents=True)
    (runs / f"{hashes[1]}.lock").write_text(json.dumps({"run": str(tmp_path / "far" / "run" / "aa")}))
    plain = federation.read_text()
    wanted = [tmp_path / "fed" / "before", tmp_path / "far" / "run"]
    paths = [p / name for p in wanted for name in ("aa", FEDERATION_FILE)]
    assert set(look(site, *paths).values()) == {""}
    previous = f'previous = "{hashes[0]}"\n'
    start = f'\n[start]\nfrom = "previous"\nepochs = {json.dumps(hashes)}\nsites = ["{"0" * 64}"]\n'
    federation.write_text(plain.replace("[federation]\n", f"[federation]\n{previous}") + start)
    from fedhpc.agreement.start_settings import StartSettings

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StartSettings, "check", lambda *_: None)  # this roster has no identities
        assert set(look(site, *paths).values()) == {"r"}


def test_a_relay_sees_what_its_settings_name(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    folder = tmp_path / "relay"
    for name in ("relay", "keys", "lists", "store"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("keys/relay.pem", "keys/relay.key", "lists/roster.toml", "keys/authority.pem"):
        (tmp_path / name).touch(0o600)
    (folder / "relay.toml").write_text(
        'relay = { listen = "0.0.0.0:1", store = "../store", certificate = "../keys/relay.pem", '
        'key = "../keys/relay.key", client_authorities = ["../keys/authority.pem"], roster = "../lists/roster.toml" }'
    )
    paths = [folder / "relay.toml", tmp_path / "store", tmp_path / "keys" / "relay.key", tmp_path / "lists", site]
    seen = look(site, *paths, shape=Shape("relay", relay=folder / "relay.toml"))
    assert list(seen.values()) == ["w", "w", "r", "w", ""]


def test_folders_that_cannot_be_made_end_the_job_with_a_hint(tmp_path: Path) -> None:
    site = site_in(tmp_path / "fed")
    (tmp_path / "file").touch()
    edit(site, site.read_text().partition("[ledger]")[2].splitlines()[1], "")
    done = enter(site, [site], XDG_DATA_HOME=str(tmp_path / "file" / "share"))
    assert done.code == 74, done.text
    assert "[ledger] path" in done.out
    assert "dropped" in done.out


def test_a_named_ledger_needs_no_data_directory(tmp_path: Path) -> None:
    """What fedhpc notes there of the data's use goes to the run's own home instead."""
    site = site_in(tmp_path / "fed")
    (tmp_path / "file").touch()
    own = tmp_path / "fed" / "run" / "aa" / "jobs" / "own-home" / ".local" / "share" / "fedhpc"
    seen = look(site, tmp_path / "fed" / "ledger" / "aa", own, XDG_DATA_HOME=str(tmp_path / "file" / "share"))
    assert list(seen.values()) == ["w", "w"]
    assert (
        look(site, tmp_path / "home" / "fedhpc", XDG_DATA_HOME=str(tmp_path / "home"))[f"{tmp_path}/home/fedhpc"] == "w"
    )


def test_other_ledgers_of_the_same_data_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the note of which ledgers data were used with would lose them."""
    site = site_in(tmp_path / "fed")
    home = LedgerHome(tmp_path / "elsewhere")
    home.key()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    remember_home(home, tmp_path / "fed" / "data" / "aa.h5")
    assert list(look(site, home.ledger, home.folder / "ledger.key").values()) == ["r", ""]

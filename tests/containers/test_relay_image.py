"""containers/relay.def, built here: the relay in it serves four sites, whose ranks run in the CPU image."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import charliecloud
import pytest
from built_image import BuiltImage
from charliecloud import NOBODY, RUN, TEST, run_image
from clusters import Clusters, until
from federation import SlurmFederation, replace

Build = Callable[..., BuiltImage]
SLURM = """
[slurm]
profile = "generic"
mpi = "pmix"
time = "00:30:00"

[slurm.container]
runtime = "charliecloud"
environment = {{ TMPDIR = "{temporary}" }}
"""


@pytest.fixture(scope="module")
def relay(image_of: Build) -> BuiltImage:
    return image_of("relay.def", "relay")


class RelayPlace:
    """The relay of a federation in its place between the clusters: an ordinary user, one folder, a read-only root."""

    def __init__(self, image: BuiltImage, made: SlurmFederation, folder: Path) -> None:
        self._image, self._made, self.folder = image, made, folder
        self.log = made.folder / "relay.log"
        shutil.copytree(made.enrolled.relay.parent, folder)  # to where others than root may go
        replace(folder / "relay.toml", "127.0.0.1:0", "127.0.0.1:9443")
        shutil.copy(made.enrolled.federation, folder / "federation.toml")
        for path in (self.folder, *self.folder.rglob("*")):
            os.chown(path, NOBODY, NOBODY)
        self.folder.chmod(0o700)

    def words(self, *words: str) -> list[str]:
        """`apptainer run` of these words, by Charliecloud."""
        inside = charliecloud.words(self._image.root, RUN, *words, binds={self.folder: "/relay"}, keep=False)
        user = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "env", "USER=relay"]
        return self._made.clusters.relay.inside(*user, *inside)

    def ask(self, *words: str) -> str:
        """What a short command in it says; AssertionError if it fails."""
        done = subprocess.run(self.words(*words), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def serving(self) -> Iterator[subprocess.Popen[bytes]]:
        """`serve`, until the block ends."""
        with self.log.open("ab") as file:
            process = subprocess.Popen(self.words("serve", "/relay/relay.toml"), stdout=file, stderr=file)
        try:
            until(lambda: "listening" in self.log.read_text() or process.poll() is not None, "the relay", 60)
            assert process.poll() is None, self.log.read_text()
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_its_own_test_passes_without_root(relay: BuiltImage) -> None:
    assert relay.stage.test
    run_image(relay.root, TEST, user=NOBODY).ok()


def test_it_holds_nothing_of_training(relay: BuiltImage) -> None:
    found = {path.name for path in relay.root.glob("**/site-packages/*") if path.is_dir()}
    found |= {path.name for path in relay.root.glob("**/dist-packages/*") if path.is_dir()}
    assert "fedhpc" in found
    assert not found & {"torch", "mpi4py", "h5py", "matplotlib", "pytest"}


def test_four_sites_in_images_sum_through_a_relay_in_one(
    relay: BuiltImage, cpu: BuiltImage, clusters: Clusters, workshop: Path, tmp_path: Path, record_property: Any
) -> None:
    """`fedhpc submit --container` on two clusters that do not know each other: the model of one MPI job outside."""
    made = SlurmFederation(clusters, tmp_path / "heart")
    place = RelayPlace(relay, made, workshop / "relay-folder")
    clusters.open_beta()
    try:
        with place.serving() as process:
            assert "admitted already" in place.ask("admit", "/relay/federation.toml", "--relay", "/relay/relay.toml")
            for site in made.sites:
                # Each node's own folder for temporary files, also in the image: all nodes are one machine here.
                temporary = made.where[site].env["TMPDIR"]
                made.settings(site, SLURM.format(temporary=temporary))
                made.submit(site, "--container", str(cpu.root))
            made.wait()
            for site in made.sites:
                assert f"container {cpu.root}, a folder" in made.log(site, made.job(site)), made.logs()
            assert '"federations"' in place.ask("status", "--json")
        assert process.returncode == 0
    finally:
        clusters.close_beta()
    hashes = {made.finished(site) for site in made.sites}
    assert hashes == {made.rehearsal()}
    record_property("relay", {"final_model_sha256": hashes.pop()})

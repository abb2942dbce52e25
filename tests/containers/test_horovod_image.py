"""containers/cpu.def with HOROVOD=yes: the wheel of our own recipe, built in the build stage, trains in the image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import root_fs
from built_image import BuiltImage
from charliecloud import run_image
from clusters import Cluster
from harness import Site, write_federation
from jobs_inside import PYTHON, trained

Build = Callable[..., BuiltImage]
LOOK = """
import json, os
from fedhpc.horovod.installed import look, require_fit
found = require_fit(look(os.environ, 300))
print(json.dumps({"version": found.version, "libraries": [str(path) for path in found.libraries]}))
"""


def test_two_sites_of_two_ranks_train_with_it(
    image_of: Build, alpha: Cluster, tmp_path: Path, record_property: Any
) -> None:
    """The wheel is kept from one session to the next: building it takes minutes."""
    kept = root_fs.cache_folder() / "horovod"
    kept.mkdir(mode=0o700, exist_ok=True)
    image = image_of("cpu.def", "horovod", binds={kept: "/root/.cache/fedhpc/horovod"}, HOROVOD="yes")
    found = json.loads(run_image(image.root, PYTHON, "-c", LOOK, timeout=300).ok().out)
    assert len(found["libraries"]) == 1
    assert not list(image.root.glob("usr/bin/*g++*")), "the compiler stayed in the image"
    hashes = {}
    for backend in ("ddp", "horovod"):
        compute = {"backend": backend}
        sites = {"aa": Site(rows=40, ranks=2, compute=compute), "bb": Site(rows=60, ranks=2, compute=compute)}
        federation = write_federation(tmp_path / backend, sites, secure={"accept_two_sites": True})
        hashes[backend] = trained(alpha, federation.parent, image.root, federation, tasks=4, nodes=1)
    assert hashes["horovod"] == hashes["ddp"]
    record_property("horovod", {**found, "final_model_sha256": hashes})

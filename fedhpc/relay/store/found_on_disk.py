"""What a store finds on its disk when the relay starts; what was never visible nor can be gone on with is removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedhpc.relay.store.upload import Upload, read_head
from fedhpc.wire.object_names import ObjectName

PLACES = "*/*/*/*"  # config/round/attempt/object


def found_on_disk(root: Path) -> Iterator[tuple[ObjectName, int, bytes | Upload]]:
    """Name, declared length and Tree of each whole object, or the upload of a partial one; oldest first."""
    for meta in sorted(root.glob(f"{PLACES}.meta"), key=lambda path: path.stat().st_mtime):
        base = meta.with_suffix("")
        part = base.with_name(base.name + ".part")
        try:
            name = ObjectName.parse("/".join((*base.parts[-4:-1], base.name.replace(".", "/"))))
            length, tree = read_head(meta)
            found: bytes | Upload
            if base.exists() and tree is not None and base.stat().st_size == length:
                found = tree
            elif part.exists():
                found = Upload(name, base, length, name.owner)
                found.load()
            else:
                raise ValueError("neither object nor upload")
        except ValueError:
            for path in (meta, part, base):
                path.unlink(missing_ok=True)
            continue
        yield name, length, found
    for orphan in root.glob(f"{PLACES}.own"):
        orphan.unlink()
    for orphan in root.glob(f"{PLACES}.part"):  # made, but killed before the first word was recorded
        if not orphan.with_suffix(".meta").exists():
            orphan.unlink()


def remove_empty(folder: Path) -> None:
    """The folder of an attempt and that of its round, if nothing is in them."""
    for path in (folder, folder.parent):
        try:
            path.rmdir()
        except OSError:
            return

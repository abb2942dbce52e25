"""What a store finds on its disk when the relay starts; what was never visible nor can be gone on with is removed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from fedhpc.relay.store.upload import Head, Upload, read_head, recorded_tree
from fedhpc.wire.object_names import ObjectName

PLACES = "*/*/*/*"  # config/round/attempt/object
Trees = tuple[bytes, bytes]
"""Of a whole object: the Tree [32] that was declared, and that of the bytes that came."""


def found_on_disk(root: Path, *, rebooted: bool = False) -> Iterator[tuple[ObjectName, int, Trees | Upload]]:
    """Name, declared length and Trees of each whole object, or the upload of a partial one; oldest first.

    `rebooted`: the machine started again since the store was used, so what nobody had synced is not believed.
    """
    for meta in sorted(root.glob(f"{PLACES}.meta"), key=lambda path: path.stat().st_mtime):
        base = meta.with_suffix("")
        part = base.with_name(base.name + ".part")
        try:
            name = ObjectName.parse("/".join((*base.parts[-4:-1], base.name.replace(".", "/"))))
            head = read_head(meta)
            found: Trees | Upload | None = _whole(head, base, name, rebooted=rebooted)
            if found is None:
                if not part.exists():
                    raise ValueError("neither object nor upload")
                found = Upload(name, base, head.length, head.suite, durable=head.durable)
                found.load()
        except ValueError:
            for path in (meta, part, base):
                path.unlink(missing_ok=True)
            continue
        yield name, head.length, found
    for orphan in root.glob(f"{PLACES}.own"):
        orphan.unlink()
    for orphan in root.glob(f"{PLACES}.part"):  # made, but killed before the first word was recorded
        if not orphan.with_suffix(".meta").exists():
            orphan.unlink()


def _whole(head: Head, base: Path, name: ObjectName, *, rebooted: bool) -> Trees | None:
    """The Trees of an object that is whole; None if it is not. Raises ValueError where a reboot may have hurt it."""
    if not (base.exists() and head.tree is not None and base.stat().st_size == head.length):
        return None
    if name.owner is None:  # the relay's own were durable before they had a name, and have no records
        return head.tree, head.tree
    came = recorded_tree(base.with_name(base.name + ".meta"), head.length, head.suite)
    if came is None or (rebooted and not head.durable):
        raise ValueError("its bytes were not synced")
    return head.tree, came


def remove_empty(folder: Path) -> None:
    """The folder of an attempt and that of its round, if nothing is in them."""
    for path in (folder, folder.parent):
        try:
            path.rmdir()
        except OSError:
            return

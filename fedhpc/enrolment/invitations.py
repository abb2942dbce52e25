"""invitations.toml: what the coordinator keeps to itself. Who is invited, how their requests are checked, which keys
are refused forever. And the relay's half of it: tokens.toml and the mailbox.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from fedhpc.agreement.roster import check_name
from fedhpc.config import parse_toml, read_bytes, read_section
from fedhpc.errors import ConfigError, PolicyError
from fedhpc.files import write_whole
from fedhpc.secure.join_request import access_hash, new_token, split_token

_HEX = re.compile(r"[0-9a-f]{64}")
_MOST_SITES = 100

_OWN_HEADER = (
    "# Kept by `fedhpc federation`, for the coordinator only: with these, a relay could forge a site's request.\n"
)
_RELAY_HEADER = "# Written by `fedhpc federation`: site name -> SHA-256 of what its one-time token shows the relay.\n"


@dataclass
class Invitations:
    """Who is invited. `save` writes both files; nothing changes on disk before."""

    path: Path
    tokens_path: Path
    signed: bool = False
    """The roster was complete once, so sites may have signed it: every later change is a new epoch."""
    invited: dict[str, str] = field(default_factory=dict, repr=False)
    """Name -> proof half of its token, in the order of the roster."""
    refused: dict[str, str] = field(default_factory=dict)
    """Public key or pin -> the site that it was revoked from."""
    tokens: dict[str, str] = field(default_factory=dict)
    """Name -> SHA-256 of the access half."""

    @classmethod
    def read(cls, path: Path, tokens_path: Path) -> Invitations:
        """Raises ConfigError if the folder is not a coordinator's."""
        if not path.exists():
            raise ConfigError(
                f"{path.parent} is not the folder of a federation that can be enrolled",
                "`fedhpc federation new` makes one",
            )
        given = read_section(_File, parse_toml(read_bytes(path), str(path)), str(path))
        tokens = parse_toml(read_bytes(tokens_path), str(tokens_path)) if tokens_path.exists() else {}
        for table in (given.invited, {v: k for k, v in given.refused.items()}, tokens):
            for name, value in table.items():
                check_name(name, str(path))
                if not _HEX.fullmatch(str(value)):
                    raise ConfigError(f"{path}: the value of {name} is not 64 hex digits")
        return cls(path, tokens_path, given.signed, dict(given.invited), dict(given.refused), tokens)

    def invite(self, name: str) -> str:
        """A fresh token for `name`, which is given out once and not kept; an earlier one stops working."""
        check_name(name, "the site's name")
        if name not in self.invited and len(self.invited) >= _MOST_SITES:
            raise ConfigError(f"a federation has at most {_MOST_SITES} sites")
        token = new_token()
        halves = split_token(token)
        self.invited[name] = halves.proof
        self.tokens[name] = access_hash(halves.access)
        return token

    def forget(self, name: str) -> None:
        """Take back the invitation of `name`."""
        self.invited.pop(name, None)
        self.tokens.pop(name, None)

    def check_allowed(self, name: str, *keys: str) -> None:
        """Raise PolicyError unless `name` is invited and none of its keys was ever revoked."""
        if name not in self.invited:
            raise PolicyError(f"no site '{name}' was invited", f"invited: {', '.join(self.invited)}")
        for key in keys:
            if key in self.refused:
                raise PolicyError(
                    f"site {name} asks with a key that was revoked from site {self.refused[key]}",
                    "revoked keys never get a certificate again: it runs `fedhpc site rotate` first",
                )

    def save(self) -> None:
        """Write both files; the coordinator's with mode 0600. Raises StorageError."""
        text = _OWN_HEADER + f"signed = {str(self.signed).lower()}\n"
        text += "\n[invited]\n" + "".join(f'{name} = "{proof}"\n' for name, proof in self.invited.items())
        text += "\n[refused]\n" + "".join(f'{key} = "{name}"\n' for key, name in self.refused.items())
        write_whole(self.path, text.encode(), mode=0o600)
        tokens = "".join(f'{name} = "{value}"\n' for name, value in self.tokens.items())
        write_whole(self.tokens_path, (_RELAY_HEADER + tokens).encode(), mode=0o600)


@dataclass(frozen=True)
class _File:
    signed: bool
    invited: dict[str, str]
    refused: dict[str, str]

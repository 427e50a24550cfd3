"""Files that are downloaded, checked by their sums, and gone on with in the middle of a file."""

import argparse
import hashlib
import http.client
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional

from luna_tools.progress import bar

from fairseq_luna.errors import Problem
from fairseq_luna.files import read_json, remove, write_json
from luna_data.folder import stamp


class Archive(NamedTuple):
    """A file to download, its sum (MD5 or SHA-256), and the name that its training text begins with."""

    url: str
    sum: str
    prefix: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def add_mirror(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--mirror", metavar="URL", help="take each file from URL/NAME and the SHA-256 sums from URL/SHA256SUMS"
    )


class Downloads:
    """A folder of files that were downloaded and found to have the right sum."""

    def __init__(self, folder: Path, mirror: Optional[str], say: Callable[[str], None] = print) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.mirror, self.say = folder, mirror and mirror.rstrip("/"), say
        self.notes = folder / "downloads.json"
        self.facts: Dict[str, Dict[str, Any]] = read_json(self.notes, {})
        self.sums: Dict[str, str] = {}

    def get(self, archive: Archive) -> Path:
        """The file, downloaded if it is not here whole."""
        path = self.folder / archive.name
        url = f"{self.mirror}/{archive.name}" if self.mirror else archive.url
        known = self.facts.get(path.name, {})
        if path.exists() and known.get("stamp") == stamp(path):
            if known["url"] == url or not self.mirror and archive.sum in known.values():
                return path
        wanted = self.wanted(archive)
        sums = self.check(path, wanted, archive.sum) if path.exists() else None
        if not sums:
            part = path.with_name(path.name + ".part")
            self.say(f"downloading {url}")
            fetch(url, part)
            sums = self.check(part, wanted, archive.sum)
            if not sums:
                raise Problem(
                    f"what {url} gave was removed, for it has the wrong sum: run again to download it anew; "
                    "if that is no help, the file there is damaged"
                )
            os.replace(part, path)
        self.facts[path.name] = {"url": url, "bytes": path.stat().st_size, **sums, "stamp": stamp(path)}
        write_json(self.notes, self.facts)
        return path

    def source(self, archive: Archive) -> Dict[str, Any]:
        """Where the file came from and what it is, for the manifest; a mirror may give other than the official."""
        facts = self.facts[archive.name]
        return {**{key: facts[key] for key in ("url", "bytes", "sha256")}, "official": archive.sum in facts.values()}

    def wanted(self, archive: Archive) -> str:
        """The sum that the archive must have."""
        if not self.mirror:
            return archive.sum
        if not self.sums:
            url = f"{self.mirror}/SHA256SUMS"
            try:
                with urllib.request.urlopen(url, timeout=60) as response:
                    text = response.read().decode("utf-8", "replace")
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise unreachable(url, error) from None
            lines = re.findall(r"(?m)^([0-9a-fA-F]{64}) [ *](?:\./)?(\S+)\s*$", text)
            self.sums = {name: value.lower() for value, name in lines}
        if archive.name not in self.sums:
            raise Problem(f"{self.mirror}/SHA256SUMS has no line for {archive.name}")
        return self.sums[archive.name]

    def check(self, path: Path, wanted: str, official: str) -> Optional[Dict[str, str]]:
        """The sums of the file if the wanted one is among them; else it is removed, and named."""
        sums = digests(path)
        if wanted in sums.values():
            return sums
        if official in sums.values():
            raise Problem(f"{path} is the official archive, and the mirror has another: choose another --out for that")
        kind = "md5" if len(wanted) == 32 else "sha256"
        self.say(f"{path} is removed and not used: its {kind} is {sums[kind]}, but should be {wanted}")
        remove(path)
        return None


def digests(path: Path) -> Dict[str, str]:
    sums = hashlib.sha256(), hashlib.md5()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            for kind in sums:
                kind.update(block)
    return {kind.name: kind.hexdigest() for kind in sums}


def fetch(url: str, part: Path) -> None:
    """Download to `part`, after what is there already where the server can do that."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            if response.getcode() != 206:
                have = 0  # the server sends the whole of it
            rest = response.headers["Content-Length"]
            total = have + int(rest) if rest else None
            with open(part, "ab" if have else "wb") as file, bar(total, "B", initial=have) as line:
                line.unit_scale = True
                for block in received(response, url):
                    file.write(block)
                    line.update(len(block))
    except urllib.error.HTTPError as error:
        if error.code != 416:  # there is no more than what is here
            raise unreachable(url, error) from None
        return
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, socket.timeout, ValueError) as error:
        raise unreachable(url, error) from None
    if total and part.stat().st_size < total:
        raise Problem(
            f"the connection ended at {part.stat().st_size:,} of {total:,} bytes of {url}: "
            "the same command goes on from there"
        )


def received(response: Any, url: str) -> Iterator[bytes]:
    """What comes; an error of the network is told from one of the disk."""
    try:
        yield from iter(lambda: response.read(1 << 18), b"")
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url, error) from None


def unreachable(url: str, error: Exception) -> Problem:
    reason = getattr(error, "reason", None) or error
    return Problem(f"{url} cannot be downloaded ({reason}): check the network; the same command goes on from there")

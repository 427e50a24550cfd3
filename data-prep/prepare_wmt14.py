"""WMT14 English-German to fairseq data: download, clean, cut into pieces of a joint vocabulary, binarise.

The training text is Europarl v7, Common Crawl and News Commentary v9 (about 4.5 million pairs); the validation set is
newstest2013 and the test set newstest2014, both as sacrebleu's own data sets give them. Run again, only what changed is
done again; a run that was killed goes on, a download in the middle of its file."""

import argparse
import hashlib
import http.client
import os
import re
import socket
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Dict, Iterator, NamedTuple, Optional

from corpus import Corpus, Text, add_options, apart, positive, settings_of, stamp, taken  # isort: skip
from common import Problem, entry, go_on_later, read_json, read_lines, remove, whole, write_json
from progress import bar

SOURCE, TARGET = "en", "de"


class Archive(NamedTuple):
    """A file to download, its sum (MD5 or SHA-256), and what it holds of training text."""

    url: str
    sum: str
    prefix: str = ""

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


TRAINING = (
    Archive(
        "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz",
        "0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7",
        "training/europarl-v7.de-en",
    ),
    Archive(
        "https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz",
        "c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5",
        "commoncrawl.de-en",
    ),
    Archive(
        "https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz",
        "cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485",
        "training/news-commentary-v9.de-en",
    ),
)

# sacrebleu's data set of each held-out split, and its number of lines
HELD_OUT = {"valid": ("wmt13", 3000), "test": ("wmt14/full", 3003)}
VOCABULARY = {"sentencepiece": 32000, "moses-bpe": 40000}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="prepare-wmt14-en-de.sh", description=__doc__)
    parser.add_argument(
        "--vocab-size",
        type=positive,
        metavar="N",
        help="joint sentencepiece vocabulary, or merges of moses-bpe (default: "
        f"{VOCABULARY['sentencepiece']:,} or {VOCABULARY['moses-bpe']:,})",
    )
    parser.add_argument(
        "--mirror", metavar="URL", help="take each file from URL/NAME and the SHA-256 sums from URL/SHA256SUMS"
    )
    parser.add_argument(
        "--limit", type=positive, metavar="N", help="the first N pairs of each training archive alone, for a trial"
    )
    add_options(parser, max_length=250, max_ratio=1.5)
    args = parser.parse_args()
    args.source, args.target = SOURCE, TARGET
    args.vocab_size = args.vocab_size or VOCABULARY[args.recipe]
    return args


def main() -> None:
    args = parse_args()
    go_on_later()
    with taken(args.out, {**settings_of(args), "limit": args.limit}):
        downloads = Downloads(args.out / "downloads", args.mirror)
        tests = datasets()
        paths = {archive: downloads.get(archive) for archive in (*TRAINING, *tests.values())}
        sources = {archive.name: downloads.source(archive) for archive in paths}
        cache = unpack_tests(downloads.folder, {split: paths[archive] for split, archive in tests.items()})

        texts = {
            "train": [
                (Text(paths[archive], f"{archive.prefix}.{SOURCE}"), Text(paths[archive], f"{archive.prefix}.{TARGET}"))
                for archive in TRAINING
            ]
        }
        held_out = {}
        for split, (name, lines) in HELD_OUT.items():
            official = sources[tests[split].name]["official"]
            held_out[split] = {"sacrebleu": name, "official": official}
            pair = Text(cached(cache, name, "src")), Text(cached(cache, name, "ref"))
            if official:
                check_lines(pair, lines)
            texts[split] = [pair]
        sums = {name: source["sha256"] for name, source in sources.items()}
        facts = {"corpus": "wmt14-en-de", "sources": sources, "held out": held_out}
        Corpus("prepare-wmt14-en-de", args, texts, sums, args.limit, facts).prepare()


def say(message: str) -> None:
    print(f"prepare-wmt14-en-de: {message}", flush=True)


# ---- downloads -------------------------------------------------------------------------------------------------------


class Downloads:
    """A folder of files that were downloaded and found to have the right sum."""

    def __init__(self, folder: Path, mirror: Optional[str]) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self.mirror = folder, mirror and mirror.rstrip("/")
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
            say(f"downloading {url}")
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

    @staticmethod
    def check(path: Path, wanted: str, official: str) -> Optional[Dict[str, str]]:
        """The sums of the file if the wanted one is among them; else it is removed, and named."""
        sums = digests(path)
        if wanted in sums.values():
            return sums
        if official in sums.values():
            raise Problem(f"{path} is the official archive, and the mirror has another: choose another --out for that")
        kind = "md5" if len(wanted) == 32 else "sha256"
        say(f"{path} is removed and not used: its {kind} is {sums[kind]}, but should be {wanted}")
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
            with open(part, "ab" if have else "wb") as file, bar(total, "B", initial=have) as line:  # type: ignore
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


def received(response, url: str) -> Iterator[bytes]:
    """What comes; an error of the network is told from one of the disk."""
    try:
        yield from iter(lambda: response.read(1 << 18), b"")
    except (OSError, http.client.HTTPException) as error:
        raise unreachable(url, error) from None


def unreachable(url: str, error: Exception) -> Problem:
    reason = getattr(error, "reason", None) or error
    return Problem(f"{url} cannot be downloaded ({reason}): check the network; the same command goes on from there")


# ---- validation and test ---------------------------------------------------------------------------------------------


def datasets() -> Dict[str, Archive]:
    """The archives of sacrebleu's own tables."""
    from sacrebleu.dataset import DATASETS

    return {split: Archive(DATASETS[name].data[0], DATASETS[name].md5[0]) for split, (name, _) in HELD_OUT.items()}


def unpack_tests(folder: Path, archives: Dict[str, Path]) -> Path:
    """Have sacrebleu unpack its data sets into a cache of ours, which `SACREBLEU=FOLDER sacrebleu -t ...` can use."""
    cache = folder / "sacrebleu"
    known = {name: stamp(archives[split]) for split, (name, _) in HELD_OUT.items()}
    if read_json(cache / "made-of.json") != known:
        with whole(cache) as beside:
            beside.mkdir()
            apart(run_sacrebleu, beside, {HELD_OUT[split][0]: path.resolve() for split, path in archives.items()})
            write_json(beside / "made-of.json", known)
    return cache


def run_sacrebleu(cache: Path, archives: Dict[str, Path]) -> None:
    os.environ["SACREBLEU"] = str(cache)  # read once, when it is imported
    from sacrebleu.dataset import DATASETS

    for name, archive in archives.items():
        dataset = DATASETS[name]
        try:
            type(dataset)(name, data=[archive.as_uri()], langpairs=dataset.langpairs).process_to_text(
                f"{SOURCE}-{TARGET}"
            )
        except Exception as error:
            raise Problem(f"sacrebleu cannot make {name} of {archive} ({type(error).__name__}: {error})") from None


def cached(cache: Path, name: str, side: str) -> Path:
    return cache / name / f"{name.replace('/', '_')}.{SOURCE}-{TARGET}.{side}"


def check_lines(texts: tuple, wanted: int) -> None:
    for text in texts:
        lines = sum(1 for _ in read_lines(text.path))
        if lines != wanted:
            raise Problem(f"{text} has {lines:,} lines, but the official set has {wanted:,}")


if __name__ == "__main__":
    entry("prepare-wmt14-en-de", main)

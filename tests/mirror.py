"""A small mirror of the WMT14 archives, made of the embedded corpus: the same names and layout, served on the loopback.

`python tests/mirror.py --pairs 3000 --port 8014` serves one until Ctrl-C, for
`bash data-prep/prepare-wmt14-en-de.sh --mirror http://127.0.0.1:8014 ...`."""

import argparse
import hashlib
import io
import tarfile
import tempfile
import threading
from contextlib import contextmanager
from functools import lru_cache, partial
from html import escape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Dict, Iterator, List, Union

ARCHIVES = ".tgz", ".gz"
CORPUS = Path(__file__).resolve().parent.parent / "data-prep" / "libreoffice-help" / "libreoffice-help-en-de.tar.xz"
TRAINING = {
    "training-parallel-europarl-v7.tgz": "training/europarl-v7.de-en",
    "training-parallel-commoncrawl.tgz": "commoncrawl.de-en",
    "training-parallel-nc-v9.tgz": "training/news-commentary-v9.de-en",
}


@lru_cache(maxsize=None)
def whole_text(name: str) -> List[str]:
    with tarfile.open(str(CORPUS)) as archive:
        return archive.extractfile(name).read().decode().split("\n")[:-1]


def lines(name: str, number: int) -> List[str]:
    """The first lines of a file of the embedded corpus."""
    return whole_text(name)[:number]


def make(folder: Path, pairs: int = 3000, held_out: int = 20) -> None:
    """Write the archives of a mirror with so many training pairs in all and lines in each held-out set."""
    folder.mkdir(parents=True, exist_ok=True)
    train = {lang: lines(f"train.{lang}", pairs) for lang in ("en", "de")}
    for i, (name, prefix) in enumerate(TRAINING.items()):
        part = slice(i * pairs // 3, (i + 1) * pairs // 3)
        pack(folder / name, {f"{prefix}.{lang}": "\n".join(train[lang][part]) + "\n" for lang in ("de", "en")})
    valid, test = ({lang: lines(f"{split}.{lang}", held_out) for lang in ("en", "de")} for split in ("valid", "test"))
    pack(folder / "test.tgz", {f"test/newstest2013-src.{lang}.sgm": sgm(valid[lang], lang) for lang in ("en", "de")})
    sides = ("src", "en"), ("ref", "de")
    members = {f"test-full/newstest2014-deen-{side}.{lang}.sgm": sgm(test[lang], lang) for side, lang in sides}
    pack(folder / "test-full.tgz", members)
    sign(folder)


def sgm(text: List[str], lang: str) -> str:
    """The fake SGML of the test sets."""
    segments = "\n".join(f'<seg id="{i}">{line}</seg>' for i, line in enumerate(text, 1))
    opening = f'<srcset setid="toy" srclang="any">\n<doc docid="toy" genre="help" origlang="{escape(lang)}">\n<p>\n'
    return opening + segments + "\n</p>\n</doc>\n</srcset>\n"


def make_imdb(folder: Path, reviews: Dict[str, bytes]) -> None:
    """Write the archive of film reviews with these: {"train/pos/7_9": text}, and with files that are none."""
    folder.mkdir(parents=True, exist_ok=True)
    others = {"aclImdb/README": b"see the paper", "aclImdb/train/unsup/0_0.txt": b"of no class"}
    members = {f"aclImdb/{name}.txt": text for name, text in reviews.items()}
    pack(folder / "aclImdb_v1.tar.gz", {**others, **members})
    sign(folder)


def pack(path: Path, members: Dict[str, Union[str, bytes]]) -> None:
    """Write a .tgz of these members."""
    with tarfile.open(str(path), "w:gz") as archive:
        for name, text in members.items():
            data = text if isinstance(text, bytes) else text.encode()
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


def sign(folder: Path) -> None:
    """Write SHA256SUMS for the archives as they are."""
    paths = (path for path in sorted(folder.iterdir()) if path.suffix in ARCHIVES)
    sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in paths]
    (folder / "SHA256SUMS").write_text("".join(sums))


class Handler(SimpleHTTPRequestHandler):
    """Serves files, with the part of the Range header that downloads need; notes each request."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        asked = self.headers["Range"]
        self.server.requests.append((path.name, asked))
        if not path.is_file():
            return self.send_error(404)
        data, first = path.read_bytes(), 0
        if asked and self.server.ranges:
            first = int(asked[len("bytes=") :].rstrip("-"))
            if first >= len(data):
                return self.send_error(416)
        self.send_response(206 if first else 200)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.end_headers()
        end = first + self.server.most if self.server.most and path.suffix in ARCHIVES else None
        self.wfile.write(data[first:end])

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    """The served mirror: its `requests` so far as (name, Range header)."""

    daemon_threads = True
    ranges = True  # whether parts of files are to be had
    most = 0  # bytes of an archive after which an answer breaks off, if any

    def __init__(self, folder: Path, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), partial(Handler, directory=str(folder)))
        self.folder, self.requests = folder, []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve(folder: Path, port: int = 0) -> Iterator[Server]:
    """Serve a folder meanwhile."""
    with Server(folder, port) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3000, help="training pairs in all (default %(default)s)")
    parser.add_argument("--held-out", type=int, default=20, help="lines of each held-out set (default %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="default: any that is free")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), args.pairs, args.held_out)
        with serve(Path(folder), args.port) as server:
            print(server.url, flush=True)
            try:
                threading.Event().wait()
            except KeyboardInterrupt:
                pass


if __name__ == "__main__":
    main()

"""Downloads against a server in this process."""

import contextlib
import dataclasses
import gzip
import hashlib
import http.server
import json
import os
import socket
import threading
import warnings

import numpy as np
import pytest

from scvi_qbm.benchmark import data as datasets
from scvi_qbm.benchmark.data import data_dir
from scvi_qbm.benchmark.data import remote as _download
from scvi_qbm.benchmark.data.remote import ChecksumError, DownloadError, fetch
from scvi_qbm.data import simulate

BODY = np.random.default_rng(0).bytes(300_000)
SHA = hashlib.sha256(BODY).hexdigest()


class Server:
    """What is served and what goes wrong; ``requests`` lists ``(path, Range header)``."""

    def __init__(self):
        self.bodies = {"/a.bin": BODY}
        self.requests = []
        self.ranges = True
        self.cut_after = []  # of each request to come: bytes after which the connection breaks
        self.statuses = []  # of each request to come, before the file is served again
        self.etag = '"one"'
        self.content_type = "application/octet-stream"

    def handle(self, handler):
        wanted = handler.headers.get("Range")
        self.requests.append((handler.path, wanted))
        body = self.bodies.get(handler.path)
        status = self.statuses.pop(0) if self.statuses else 200
        if body is None or status != 200:
            handler.send_error(404 if status == 200 else status)
            return
        start = 0
        same = handler.headers.get("If-Range") in (None, self.etag)
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                handler.send_error(416)
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            handler.send_response(200)
        if self.etag:
            handler.send_header("ETag", self.etag)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Content-Length", str(len(body) - start))
        handler.end_headers()
        cut = self.cut_after.pop(0) if self.cut_after else None
        handler.wfile.write(body[start:][:cut])


@pytest.fixture
def server(monkeypatch, tmp_path):
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            state.handle(self)

        def log_message(self, *args):
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setenv("SCVI_QBM_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(_download, "_PAUSE", 0.0)
    yield state
    running.shutdown()
    running.server_close()
    thread.join()


def get(server, **kwargs):
    kwargs = {"sha256": SHA, "progress": False, **kwargs}
    return fetch(f"{server.url}/a.bin", "a.bin", **kwargs)


def names():
    return sorted(path.name for path in data_dir().iterdir())


def test_a_file_is_downloaded_once(server, tmp_path):
    path = get(server)
    assert path == tmp_path / "data" / "a.bin" and path.read_bytes() == BODY
    assert names() == ["a.bin"]
    assert get(server) == path
    assert server.requests == [("/a.bin", None)]


def test_the_folder_is_pooch_s_cache_without_the_variable(monkeypatch):
    import pooch

    monkeypatch.delenv("SCVI_QBM_DATA_DIR", raising=False)
    assert data_dir() == pooch.os_cache("scvi-qbm")
    monkeypatch.setenv("SCVI_QBM_DATA_DIR", "~/somewhere")
    assert data_dir() == data_dir().home() / "somewhere"


def test_a_broken_connection_is_continued_in_the_same_call(server):
    server.cut_after = [120_000, 50_000]
    assert get(server).read_bytes() == BODY
    assert server.requests == [
        ("/a.bin", None),
        ("/a.bin", "bytes=120000-"),
        ("/a.bin", "bytes=170000-"),
    ]
    assert names() == ["a.bin"]


def test_a_short_body_is_noticed_where_urllib3_does_not(server, monkeypatch):
    import requests

    real = requests.get

    def lenient(*args, **kwargs):
        response = real(*args, **kwargs)
        response.raw.enforce_content_length = False
        return response

    monkeypatch.setattr(requests, "get", lenient)
    server.cut_after = [120_000]
    assert get(server).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_part_is_continued_in_a_later_call(server):
    server.cut_after, server.statuses = [120_000], [200, 503]
    with pytest.raises(DownloadError, match="503"):
        get(server)
    assert names() == ["a.bin.part", "a.bin.part.json"]
    assert get(server).read_bytes() == BODY
    assert server.requests[-1] == ("/a.bin", "bytes=120000-")
    assert names() == ["a.bin"]


def test_a_part_of_another_version_is_thrown_away(server):
    server.cut_after, server.statuses = [120_000], [200, 503]
    with pytest.raises(DownloadError):
        get(server)
    server.bodies["/a.bin"] = changed = BODY[::-1]
    server.etag = '"two"'
    path = get(server, sha256=hashlib.sha256(changed).hexdigest())
    assert path.read_bytes() == changed
    assert server.requests[-1] == ("/a.bin", "bytes=120000-")


def test_a_part_of_another_address_is_thrown_away(server):
    server.bodies["/b.bin"] = BODY[::-1]
    server.cut_after, server.statuses = [120_000], [200, 503]
    with pytest.raises(DownloadError):
        get(server)
    with pytest.warns(UserWarning, match="recorded"):
        path = fetch(f"{server.url}/b.bin", "a.bin", progress=False)
    assert path.read_bytes() == BODY[::-1]
    assert server.requests[-1] == ("/b.bin", None)


def test_without_validator_and_checksum_a_part_is_not_trusted(server):
    server.etag = ""
    server.cut_after = [120_000]
    with pytest.warns(UserWarning, match="recorded"):
        assert get(server, sha256=None).read_bytes() == BODY
    assert [wanted for _, wanted in server.requests] == [None, None]


def test_a_server_without_ranges_starts_again(server):
    server.ranges = False
    server.cut_after = [120_000]
    assert get(server).read_bytes() == BODY
    assert len(server.requests) == 2


def test_a_part_longer_than_the_file_is_thrown_away(server):
    server.cut_after, server.statuses = [120_000], [200, 503]
    with pytest.raises(DownloadError):
        get(server)
    server.bodies["/a.bin"] = short = BODY[:1000]
    assert get(server, sha256=hashlib.sha256(short).hexdigest()).read_bytes() == short


def test_a_connection_that_never_lasts_is_an_error(server):
    server.ranges = False
    server.cut_after = [1000] * 99
    with pytest.raises(DownloadError, match=r"keeps breaking off; 1000 bytes.*by hand.*a\.bin"):
        get(server)
    assert names() == ["a.bin.part", "a.bin.part.json"]
    assert len(server.requests) == 1 + _download._ATTEMPTS


def test_a_wrong_checksum_leaves_no_file(server):
    with pytest.raises(ChecksumError, match=r"not the published file.*put it at"):
        get(server, sha256="0" * 64)
    assert names() == []


def test_a_file_that_changed_on_disk_is_noticed_and_kept(server):
    path = get(server)
    path.write_bytes(b"spoilt")
    with pytest.raises(ChecksumError, match="is published"):
        get(server)
    assert path.read_bytes() == b"spoilt" and len(server.requests) == 1


def test_the_first_checksum_is_recorded_and_checked(server):
    with pytest.warns(UserWarning, match=f"No SHA-256 is published for a.bin.*{SHA}"):
        path = get(server, sha256=None)
    record = json.loads((data_dir() / "a.bin.sha256.json").read_text())
    assert record == {"file": "a.bin", "sha256": SHA, "url": f"{server.url}/a.bin"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        get(server, sha256=None)
    path.write_bytes(b"spoilt")
    with pytest.raises(ChecksumError, match=r"recorded in a\.bin\.sha256\.json"):
        get(server, sha256=None)
    assert len(server.requests) == 1


def test_http_errors_name_the_address_and_the_way_by_hand(server):
    with pytest.raises(DownloadError) as caught:
        fetch(f"{server.url}/none.bin", "none.bin", progress=False)
    for part in ("HTTP 404", f"{server.url}/none.bin", str(data_dir() / "none.bin")):
        assert part in str(caught.value)
    assert names() == []


def test_a_web_page_is_not_taken_for_a_file(server):
    server.content_type = "text/html; charset=utf-8"
    with pytest.raises(DownloadError, match="web page"):
        get(server, sha256=None)
    assert names() == []


def test_no_network_is_said(server):
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    url = f"http://127.0.0.1:{closed}/a.bin"
    with pytest.raises(DownloadError, match=r"No answer from http.*Is there a network\?.*by hand"):
        fetch(url, "a.bin", progress=False)
    assert names() == []


def test_a_progress_bar_is_drawn_unless_switched_off(server, capsys):
    get(server)
    assert capsys.readouterr() == ("", "")
    os.remove(data_dir() / "a.bin")
    get(server, progress=True)
    shown = capsys.readouterr()
    assert "a.bin" in shown.err and shown.out == ""


def test_archives_are_unpacked_and_removed(server):
    packed = gzip.compress(BODY)
    server.bodies["/a.bin"] = packed
    sha = hashlib.sha256(packed).hexdigest()
    with pytest.warns(UserWarning, match="recorded"):
        path = get(server, sha256=sha, unpack=True)
    assert path.name == "a.bin" and path.read_bytes() == BODY
    assert names() == ["a.bin", "a.bin.sha256.json"]
    assert get(server, sha256=sha, unpack=True) == path
    path.write_bytes(b"spoilt")
    with pytest.raises(ChecksumError, match="recorded"):
        get(server, sha256=sha, unpack=True)
    assert len(server.requests) == 1


def test_an_archive_put_there_by_hand_is_checked_and_unpacked(server):
    data_dir().mkdir()
    archive = data_dir() / "a.bin.gz"
    archive.write_bytes(gzip.compress(BODY))
    with pytest.raises(ChecksumError, match="published"):
        get(server, sha256="0" * 64, unpack=True)
    sha = hashlib.sha256(archive.read_bytes()).hexdigest()
    with pytest.warns(UserWarning, match="recorded"):
        assert get(server, sha256=sha, unpack=True).read_bytes() == BODY
    assert server.requests == []


def test_a_broken_archive_leaves_nothing_under_the_final_name(server):
    server.bodies["/a.bin"] = gzip.compress(BODY)[:-100]
    with pytest.raises(DownloadError, match="not a whole gzip"):
        get(server, sha256=None, unpack=True)
    assert names() == ["a.bin.gz"]


def test_a_file_without_address_must_be_put_there(server):
    with pytest.raises(FileNotFoundError, match=r"the portal.*put it at.*a\.bin"):
        fetch(None, "a.bin", portal="the portal")
    data_dir().mkdir(exist_ok=True)
    (data_dir() / "a.bin").write_bytes(BODY)
    with pytest.warns(UserWarning, match="recorded"):
        assert fetch(None, "a.bin", portal="the portal").read_bytes() == BODY


def test_a_collection_is_downloaded_unpacked_and_loaded(server, tmp_path, monkeypatch):
    from scvi_qbm.benchmark.data import catalogue

    made = simulate(50, 30, 3, 2, n_programs=1)
    made.var["feature_types"] = np.where(np.arange(30) < 20, "GEX", "ATAC")
    made.write_h5ad(tmp_path / "made.h5ad")
    server.bodies["/bmmc"] = packed = gzip.compress((tmp_path / "made.h5ad").read_bytes())
    info = dataclasses.replace(
        datasets.describe("bmmc_cite"),
        url=f"{server.url}/bmmc",
        sha256=hashlib.sha256(packed).hexdigest(),
    )
    monkeypatch.setitem(catalogue._ALL, "bmmc_cite", info)
    server.cut_after = [len(packed) // 2]
    with pytest.warns(UserWarning, match="recorded"):
        first = datasets.load("bmmc_cite", progress=False)
    second = datasets.load("bmmc_cite", progress=False)
    assert server.requests == [("/bmmc", None), ("/bmmc", f"bytes={len(packed) // 2}-")]
    for loaded in (first, second):
        wanted = made.layers["counts"].toarray()[:, :20]
        np.testing.assert_array_equal(loaded.layers["counts"].toarray(), wanted)

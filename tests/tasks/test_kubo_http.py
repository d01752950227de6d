"""One request to a Kubo node: sent and answered at once, and given up where no answer comes."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import re
import ssl
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from lab.ports import LOCALHOST, free_port, give_back
from rules.errors import AbortedError
from rules.ipfs import AddOptions, IpfsNode
from tasks import kubo, kubo_http
from tasks.content_files import ContentFilesError, content_digest, read_files
from tasks.kubo import KuboError, KuboUnreachableError
from tests.tasks.pinning import V0, answering, files_in, told_node


def add(node, source, **how):
    how = {"options": AddOptions(), "heed": lambda: None, "timeout_s": 20, **how}
    return kubo.add(node, str(source), **how)


def row(name):
    return {"Name": name, "Hash": V0, "Size": "7"}


@pytest.fixture
def source(tmp_path):
    return files_in(tmp_path / "source", a__one_txt=b"one", three_txt=b"three")


ROWS = [row("content/a/one.txt"), row("content/three.txt"), row("content/a"), row("content")]


# --- sent and answered at once ---------------------------------------------------------------------


def answers_while_it_is_sent_to(talk):
    """Answer each file at once, and read no further before the row was taken: as Kubo does."""
    stream = b""
    talk.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

    def say(name):
        line = f'{{"Name": "{name}", "Hash": "{V0}", "Size": "{"0" * 10_000}"}}\n'.encode()
        talk.connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")

    while b"--\r\n\r\n0\r\n\r\n" not in stream[-64:]:
        piece = talk.read()
        assert piece
        stream += piece
        while found := re.search(rb'filename="(content%2F[0-9]+)"', stream):
            say(found[1].decode().replace("%2F", "/"))
            stream = stream[found.end() :]
        stream = stream[-100:]
    say("content")
    talk.connection.sendall(b"0\r\n\r\n")


@pytest.fixture
def many(tmp_path):
    directory = tmp_path / "many"
    directory.mkdir()
    for number in range(400):
        (directory / f"{number:04}").write_bytes(b"x" * 30_000)
    return directory


def test_a_node_that_answers_while_it_is_sent_to_is_listened_to(many):
    with told_node(answers_while_it_is_sent_to, buffer_bytes=1 << 14) as one:
        assert len(add(one.node, many, timeout_s=10)) == 401


def test_the_same_by_tls_with_a_certificate_of_ones_own(many, tmp_path, monkeypatch):
    certificate, context = _certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    kubo_http._tls.cache_clear()
    try:
        with told_node(answers_while_it_is_sent_to, tls=context, buffer_bytes=1 << 14) as one:
            assert len(add(one.node, many, timeout_s=10)) == 401
    finally:
        kubo_http._tls.cache_clear()


def test_a_stranger_behind_tls_is_not_spoken_to(tmp_path):
    _, context = _certificate(tmp_path)
    with told_node(answering({"Version": "1"}), tls=context) as one:
        with pytest.raises(KuboUnreachableError, match="CERTIFICATE_VERIFY_FAILED"):
            kubo.version(one.node)
        assert one.seen == []


def _certificate(directory):
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = dt.datetime.now(dt.UTC)
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address(LOCALHOST))]
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file, private = directory / "certificate.pem", directory / "key.pem"
    file.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file, private)
    return str(file), context


def test_a_node_that_refuses_is_not_sent_the_rest(tmp_path):
    source = tmp_path / "large"
    with source.open("wb") as file:
        file.truncate(256 << 20)
    sent = []

    def script(talk):
        talk.read()
        error = {"Message": "read-only file system", "Code": 0, "Type": "error"}
        talk.answer(error, status="500 Internal Server Error")
        while talk.read():
            pass

    with told_node(script) as one, pytest.raises(KuboError, match="read-only file system"):
        add(one.node, source, progress=sent.append)
    assert sent[-1] < 64 << 20


def test_content_that_is_not_what_was_declared_is_never_sent_to_its_end(source):
    with told_node(answering(*ROWS)) as one:
        with pytest.raises(ContentFilesError, match="declared was 0000"):
            add(one.node, source, sha256="0" * 64)
        time.sleep(0.05)
        assert not one.seen[0].is_whole
        declared = content_digest(str(source), read_files(str(source)))
        add(one.node, source, sha256=declared)
        assert one.seen[1].is_whole


# --- where no answer comes -------------------------------------------------------------------------


def hangs(talk):
    while talk.read():
        pass


def test_a_node_that_hangs_is_given_up(monkeypatch, source):
    monkeypatch.setattr(kubo, "_ASK_S", 0.5)
    monkeypatch.setattr(kubo, "_GRACE_S", 0.1)
    with told_node(hangs) as one:
        for ask in (
            lambda: kubo.version(one.node),
            lambda: kubo.pin(one.node, V0, timeout_s=0.4),
            lambda: kubo.read(one.node, V0, timeout_s=0.4),
            lambda: add(one.node, source, timeout_s=0.5),
        ):
            began = time.monotonic()
            with pytest.raises(KuboUnreachableError, match=r"within 0\.5 s"):
                ask()
            assert time.monotonic() - began < 2


def test_adding_goes_on_as_long_as_bytes_move(source):
    def script(talk):
        talk.read_body()
        talk.connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for told in (*[{"Name": "content/a", "Bytes": 5}] * 10, *ROWS):
            line = json.dumps(told).encode() + b"\n"
            talk.connection.sendall(f"{len(line):x}\r\n".encode() + line + b"\r\n")
            time.sleep(0.15)
        talk.connection.sendall(b"0\r\n\r\n")

    began = time.monotonic()
    with told_node(script) as one:
        add(one.node, source, timeout_s=1.5)
    assert time.monotonic() - began > 1.5


def test_who_has_to_stop_stops_within_a_second_and_hangs_up(source):
    def stop():
        raise AbortedError("aborted by ada")

    with told_node(hangs) as one:
        for ask in (
            lambda: kubo.pin(one.node, V0, timeout_s=60, heed=stop),
            lambda: kubo.read(one.node, V0, timeout_s=60, heed=stop),
            lambda: add(one.node, source, heed=stop, timeout_s=60),
        ):
            began = time.monotonic()
            with pytest.raises(AbortedError):
                ask()
            assert time.monotonic() - began < 3


def test_nobody_at_the_address_is_told():
    port = free_port()
    try:
        with pytest.raises(KuboUnreachableError, match="Connection refused"):
            kubo.version(IpfsNode(name="one", api=f"http://{LOCALHOST}:{port}"))
    finally:
        give_back(port)

"""Our client of Prefect's API: patient with a server that is busy, quick to say that it is cut off."""

from __future__ import annotations

import base64
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_SSL_CERT_FILE,
    PREFECT_API_URL,
    temporary_settings,
)

from lab.ports import free_port
from rules.errors import ApiUnavailableError
from tasks.prefect_api import PrefectApi
from tasks.settings import Settings
from tests.requirements import need
from tests.tasks.gateway import Fault, api_through

SETTINGS = Settings(api_patience_s=3, api_patience_undoing_s=0.3, api_timeout_s=0.5)


def test_without_an_api_url_it_says_what_to_set():
    refused = pytest.raises(ApiUnavailableError, match="PREFECT_API_URL is not set")
    with temporary_settings(restore_defaults={PREFECT_API_URL}), refused:
        PrefectApi(SETTINGS)


def test_gives_up_within_its_patience_when_nobody_listens():
    nobody = temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{free_port()}/api"})
    with nobody, PrefectApi(SETTINGS) as api, api.impatient():
        began = time.monotonic()
        with pytest.raises(ApiUnavailableError, match="GET health: ConnectError"):
            api.request("GET", "health")
    assert time.monotonic() - began < 1.5


def test_is_as_patient_as_before_once_it_was_impatient():
    with api_through("", SETTINGS) as (api, between):
        between.faults = [Fault(status=422)]
        with api.impatient():
            assert api.patience_s == SETTINGS.api_patience_undoing_s
            with pytest.raises(ApiUnavailableError):
                api.request("GET", "health")
        assert api.patience_s == SETTINGS.api_patience_s


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_repeats_what_a_busy_server_did_not_take(status):
    with api_through("", SETTINGS) as (api, between):
        between.faults = [Fault(status=status, times=2)]
        assert api.request("POST", "artifacts/", {"key": "a"}).status_code == 200
        assert between.bodies("artifacts/") == [{"key": "a"}] * 3


def test_repeats_no_request_that_the_server_understood_and_refused():
    with api_through("", SETTINGS) as (api, between):
        between.faults = [Fault(status=422)]
        with pytest.raises(ApiUnavailableError, match=r"HTTP 422: .*told to fail"):
            api.request("POST", "artifacts/", {"key": "a"})
        assert len(between.seen) == 1


def test_an_error_status_that_the_caller_expects_is_an_answer():
    with api_through("", SETTINGS) as (api, between):
        between.faults = [Fault(status=404)]
        assert api.request("GET", "variables/x", accept=frozenset({404})).status_code == 404


def test_a_server_that_takes_the_request_and_says_nothing_does_not_hold_it_up():
    with api_through("", SETTINGS) as (api, between):
        between.faults = [Fault(meanwhile=lambda: time.sleep(2))]
        began = time.monotonic()
        with api.impatient(), pytest.raises(ApiUnavailableError, match="ReadTimeout"):
            api.request("GET", "health")
        assert time.monotonic() - began < 1.5


def test_signs_its_requests_where_the_server_wants_it():
    signed = temporary_settings({PREFECT_API_AUTH_STRING: "deployer:se:cret"})
    with signed, api_through("", SETTINGS) as (api, between):
        api.request("GET", "health")
    signature = base64.b64encode(b"deployer:se:cret").decode()
    assert between.seen[0].headers["Authorization"] == f"Basic {signature}"


def test_an_auth_string_without_a_colon_is_sent_as_prefects_own_client_sends_it():
    with (
        temporary_settings({PREFECT_API_AUTH_STRING: "only-a-word"}),
        api_through("", SETTINGS) as (api, way),
    ):
        api.request("GET", "health")
        assert way.seen[0].headers["Authorization"] == f"Basic {base64.b64encode(b'only-a-word').decode()}"


def test_a_private_authoritys_certificate_counts_where_prefect_names_one(tmp_path):
    need("openssl", package="openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=lab")
    paths = ("-keyout", str(key), "-out", str(certificate))
    subprocess.run((*made, *paths, "-addext", "subjectAltName=IP:127.0.0.1"), check=True, capture_output=True)
    with over_tls(certificate, key) as url:
        trusting = temporary_settings({PREFECT_API_URL: url, PREFECT_API_SSL_CERT_FILE: str(certificate)})
        with trusting, PrefectApi(SETTINGS) as api:
            assert api.request("GET", "health").text == "true"
        with (
            temporary_settings({PREFECT_API_URL: url, PREFECT_API_SSL_CERT_FILE: None}),
            PrefectApi(SETTINGS) as api,
            api.impatient(),
            pytest.raises(ApiUnavailableError, match="CERTIFICATE_VERIFY_FAILED"),
        ):
            api.request("GET", "health")


@contextmanager
def over_tls(certificate: Path, key: Path) -> Iterator[str]:
    """Answer every request by "true", by TLS with a certificate that no public authority knows."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.handle_error = lambda *_: None  # one caller hangs up on purpose
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/api"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

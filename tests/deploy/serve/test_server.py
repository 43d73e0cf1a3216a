"""A server in a process of its own, as its clients and its owner meet it."""

import concurrent.futures
import contextlib
import http.client
import json
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from deploy import load
from tests.deploy.bundle import tiny
from tests.deploy.bundle.test_damage import mutated
from tests.deploy.serve.client import binary, question

pytest.importorskip("starlette", reason="the extra 'serve' is not installed")

X = tiny.samples(12).x
DOCS = Path(__file__).parents[3] / "docs" / "serving.md"
INFER = "/v2/models/colours/infer"
KEY = "a-key-of-our-own-0123"


def test_health_and_metadata_are_those_of_the_protocol(client):
    assert client.json("GET", "/v2/health/live") == (200, {"live": True})
    assert client.json("GET", "/v2/health/ready") == (200, {"ready": True})
    status, said = client.json("GET", "/v2")
    assert (status, said["name"], said["extensions"]) == (200, "lightship", ["binary_tensor_data"])
    status, said = client.json("GET", "/v2/models/colours")
    assert (said["name"], said["versions"]) == ("colours", ["1.0.0", "2.0.0"])
    status, said = client.json("GET", "/v2/models/colours/versions/2.0.0")
    assert said["parameters"]["version"] == "2.0.0"
    for path in ("/v2/models/halves", "/v2/models/halves/versions/1.0.0"):
        assert client.json("GET", path + "/ready") == (200, {"name": "halves", "ready": True})


def test_an_answer_is_that_of_predict_to_the_last_bit(client, bundles):
    expected = load(bundles[0]).predict(X)
    status, said = client.json("POST", INFER, {**question(X), "id": "7"})
    assert (status, said["model_name"], said["model_version"]) == (200, "colours", "1.0.0")
    assert said["id"] == "7"
    label, probabilities, scores = said["outputs"]
    assert label == {"name": "label", "datatype": "BYTES", "shape": [12], "data": expected.labels}
    assert probabilities["data"] == expected.probabilities.ravel().tolist()
    assert scores["data"] == expected.scores.ravel().tolist()


def test_a_binary_answer_is_that_of_predict_to_the_last_bit(client, bundles):
    outputs = [{"name": "scores"}, {"name": "label", "parameters": {"binary_data": False}}]
    body, headers = binary(X, outputs=outputs, parameters={"binary_data_output": True})
    status, told, answer = client.ask("POST", INFER, body, headers)
    end = int(told["Inference-Header-Content-Length"])
    said = json.loads(answer[:end])
    expected = load(bundles[0]).predict(X)
    assert (status, said["outputs"][1]["data"]) == (200, expected.labels)
    assert answer[end:] == expected.scores.tobytes()


def test_many_clients_at_once_are_each_answered_as_if_alone(server, bundles):
    runtimes = {"colours": load(bundles[0]), "halves": load(bundles[2])}
    rng = np.random.default_rng(0)

    def ask(seed):
        name = list(runtimes)[seed % 2]
        shape = runtimes[name].metadata.raw.shape
        x = np.random.default_rng(seed).integers(0, 256, (1 + seed % 7, *shape), dtype=np.uint8)
        body, headers = binary(x)
        with contextlib.closing(server.client()) as client:
            for _ in range(5):
                status, said = client.json("POST", f"/v2/models/{name}/infer", body, headers)
                assert status == 200, said
                expected = runtimes[name].predict(x)
                assert said["outputs"][1]["data"] == expected.probabilities.ravel().tolist()
        return 1

    seeds = rng.permutation(24).tolist()
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert sum(pool.map(ask, seeds)) == 24


def test_the_client_of_triton_is_answered(server, bundles):
    triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colours", "2.0.0")
    assert client.get_server_metadata()["name"] == "lightship"
    assert [m["name"] for m in client.get_model_repository_index()] == ["colours"] * 2 + ["halves"]
    stated = client.get_model_metadata("colours")["inputs"][0]
    assert stated["shape"] == [-1, *X.shape[1:]]
    expected = load(bundles[0]).predict(X)
    for as_binary in (True, False):
        given = triton.InferInput(stated["name"], list(X.shape), stated["datatype"])
        given.set_data_from_numpy(X, binary_data=as_binary)
        wanted = [
            triton.InferRequestedOutput(name, binary_data=as_binary)
            for name in ("label", "probabilities", "scores")
        ]
        for outputs in (wanted, None):
            found = client.infer("colours", [given], outputs=outputs, request_id="9", timeout=10**6)
            assert found.get_response()["id"] == "9"
            np.testing.assert_array_equal(found.as_numpy("scores"), expected.scores)
            np.testing.assert_array_equal(found.as_numpy("probabilities"), expected.probabilities)
            labels = found.as_numpy("label")
            assert [x.decode() if isinstance(x, bytes) else x for x in labels] == expected.labels
    with pytest.raises(triton.InferenceServerException, match="unknown model 'nobody'"):
        client.infer("nobody", [given])
    client.close()


def test_the_python_in_the_docs_asks_a_server(serving, bundles, capsys):
    pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    with serving(bundles[0]) as server:
        exec(code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}"), {})  # noqa: S102  # our own
    assert capsys.readouterr().out == "[b'red']\n"


REFUSED = {
    "no JSON": (INFER, b"{", {}, 400),
    "no body": (INFER, b"", {}, 400),
    "no text": (INFER, b"\xff\xfe\x00", {}, 400),
    "NaN": (INFER, json.dumps(question(X, data=[float("nan")] * 36)).encode(), {}, 400),
    "another shape": (INFER, question(X[:, 0]), {}, 400),
    "another type": (INFER, question(X, datatype="FP32"), {}, 400),
    "an unknown model": ("/v2/models/nobody/infer", question(X), {}, 404),
    "an unknown version": ("/v2/models/colours/versions/9.9.9/infer", question(X), {}, 404),
    "a length that is none": (INFER, b"{}", {"Inference-Header-Content-Length": "-1"}, 400),
    "a length of digits that are none": (
        INFER, b"{}", {"Inference-Header-Content-Length": "²"}, 400,
    ),
    "a length beyond the body": (INFER, b"{}", {"Inference-Header-Content-Length": "3"}, 400),
    "a compressed body": (INFER, b"{}", {"Content-Encoding": "gzip"}, 415),
    "a huge body": (INFER, bytes(300_000), {}, 413),
    "an unknown address": ("/v1/models", {}, {}, 404),
    "another method": ("/v2/health/live", {}, {}, 405),
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "headers", "status"), REFUSED.values(), ids=list(REFUSED))
def test_what_is_wrong_is_refused_in_the_protocols_form(client, path, body, headers, status):
    assert client.refused(path, body, headers)[0] == status
    assert client.json("POST", INFER, question(X))[0] == 200  # the connection is still good


def test_a_body_of_unknown_length_is_read_up_to_the_limit(client):
    body = json.dumps(question(X)).encode()
    pieces = [body[:10], body[10:]]
    assert client.json("POST", INFER, iter(pieces))[0] == 200
    status, said = client.json("POST", INFER, (bytes(10_000) for _ in range(30)))
    assert (status, "200000 bytes" in said["error"]) == (413, True)


def talk(port, *pieces, pause_s=0.0):
    """Send bytes and return all that comes back until the connection ends."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                line.sendall(piece)
                time.sleep(pause_s)
        heard = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := line.recv(1 << 16):
                heard += piece
        return heard


@pytest.mark.parametrize(
    "piece",
    [b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"\0" * 100,
     b"POST %s HTTP/1.1\r\nContent-Length: x\r\n\r\n" % INFER.encode(),
     b"POST %s HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}" % INFER.encode()],
)  # fmt: skip
def test_what_is_no_http_is_refused(server, piece):
    heard = talk(server.port, piece)
    assert heard.startswith(b"HTTP/1.1 400 ")
    assert heard.endswith(b'{"error":"Invalid HTTP request received."}')


def test_no_damage_to_a_request_makes_the_server_fail(server, client):
    body, headers = binary(X[:2])
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = [f"POST {INFER} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *lines, "", ""]
    whole, rng = "\r\n".join(head).encode() + body, random.Random(0)  # noqa: S311  # to be drawn again
    statuses = set()
    for _ in range(200):
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as line,
            contextlib.suppress(ConnectionResetError, BrokenPipeError, TimeoutError),
        ):
            line.sendall(mutated(whole, rng))
            statuses.add(line.recv(12)[9:])  # or it waits for more
    assert {b"200", b"400"} <= statuses
    assert not {status for status in statuses if status.startswith(b"5")}
    assert client.json("POST", INFER, question(X))[0] == 200


def test_a_head_without_end_is_refused(server):
    heard = talk(server.port, b"GET / HTTP/1.1\r\n", *[b"a: " + bytes([98]) * 8000 + b"\r\n"] * 12)
    assert heard.startswith(b"HTTP/1.1 431 ") or heard == b""


def test_slow_clients_are_not_waited_for_and_hold_up_nobody(server, client):
    head = b"POST %s HTTP/1.1\r\nHost: x\r\n" % INFER.encode()
    whole = b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n"
    with concurrent.futures.ThreadPoolExecutor(5) as pool:
        silent = pool.submit(talk, server.port, b"")
        empty_lines = pool.submit(talk, server.port, whole, b"\r\n", b"\r\n", pause_s=0.3)
        half_a_head = pool.submit(talk, server.port, head)
        half_a_body = pool.submit(talk, server.port, head + b"Content-Length: 100\r\n\r\n{")
        endless = pool.submit(
            talk, server.port, head + b"Content-Length: 999999999\r\n\r\n", *[b"x"] * 8, pause_s=0.5
        )
        assert client.json("POST", INFER, question(X))[0] == 200
        assert empty_lines.result().startswith(b"HTTP/1.1 200 ")
        assert silent.result() == half_a_head.result() == b""
        assert half_a_body.result().startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 1.5 s" in half_a_body.result()
        assert endless.result().startswith(b"HTTP/1.1 413 ")


def test_a_client_that_does_not_read_is_left(server):
    x = np.random.default_rng(0).integers(0, 256, (60_000, 1, 3), np.uint8)
    body, headers = binary(x)
    lines = [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([f"POST {INFER} HTTP/1.1", f"Content-Length: {len(body)}", *lines, "", ""])
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(head.encode() + body)
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert (answer.status, answer.length > 6_000_000) == (200, True)  # more than buffers hold
        time.sleep(3)
        with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
            answer.read()


def counted(client, status):
    text = client.ask("GET", "/metrics")[2].decode()
    found = re.findall(rf'lightship_requests_total{{.*?status="{status}".*?}} (\S+)', text)
    return sum(map(float, found))


def test_metrics_count_what_was_answered_and_how(client):
    before = {status: counted(client, status) for status in (200, 400)}
    client.json("POST", INFER, question(X))
    client.json("POST", INFER, b"{")
    assert counted(client, 200) - before[200] == 1
    assert counted(client, 400) - before[400] == 1
    text = client.ask("GET", "/metrics")[2].decode()
    assert 'lightship_waiting_requests{model="colours",version="1.0.0"} 0.0' in text
    assert "lightship_run_samples_bucket" in text


def test_a_server_with_more_than_it_can_take_refuses_and_loses_nothing(serving, bundles):
    x = np.zeros((20_000, 1, 3), np.uint8)
    output = {"name": "scores", "parameters": {"binary_data": True}}
    body, headers = binary(x, outputs=[output])
    with serving(bundles[0], "--queue", 2) as server:

        def ask(_):
            with contextlib.closing(server.client()) as client:
                return [client.ask("POST", INFER, body, headers) for _ in range(10)]

        with concurrent.futures.ThreadPoolExecutor(12) as pool:
            answers = [answer for some in pool.map(ask, range(12)) for answer in some]
        statuses = [status for status, _, _ in answers]
        assert len(statuses) == 120
        assert set(statuses) == {200, 503}
        for status, told, said in answers:
            if status == 200:
                assert said[int(told["Inference-Header-Content-Length"]) :] == bytes(12 * len(x))
            else:
                assert told["Retry-After"] == "1"
                assert list(json.loads(said)) == ["error"]
        with contextlib.closing(server.client()) as client:
            assert counted(client, 200) == statuses.count(200)
            assert counted(client, 503) == statuses.count(503)
            assert client.json("POST", INFER, question(X))[0] == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_asked_to_stop_answers_what_it_has_accepted(serving, bundles, number):
    body = json.dumps(question(X)).encode()
    head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (
        INFER.encode(),
        len(body),
    )
    with (
        serving(bundles[0]) as server,
        socket.create_connection(("127.0.0.1", server.port)) as line,
    ):
        line.sendall(head + body[:9])
        time.sleep(0.3)
        server.process.send_signal(number)
        time.sleep(0.5)
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", server.port))
        line.sendall(body[9:])
        answer = http.client.HTTPResponse(line)
        answer.begin()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert json.loads(answer.read())["outputs"][0]["shape"] == [len(X)]
        _, said = server.process.communicate(timeout=30)
        assert (server.process.returncode, said) == (0, "")


@pytest.mark.parametrize("way", ["file", "environment"])
def test_without_a_key_only_health_and_empty_pages_are_given(serving, bundles, tmp_path, way):
    (tmp_path / "keys").write_text(f"another-key-0123456789\n{KEY}\n")
    words = ("--api-key-file", tmp_path / "keys") if way == "file" else ()
    environment = {} if way == "file" else {"LIGHTSHIP_API_KEY": KEY}
    with serving(bundles[0], *words, environment=environment) as server:
        for headers in ({}, {"X-API-Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
            with contextlib.closing(server.client(headers=headers)) as client:
                for method, path in (
                    ("GET", "/v2"), ("GET", "/v2/models/colours"), ("POST", INFER),
                    ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/nowhere"),
                ):  # fmt: skip
                    status, told, said = client.ask(method, path)
                    assert (status, told["WWW-Authenticate"]) == (401, "Bearer"), path
                    assert list(json.loads(said)) == ["error"]
                for path in ("/v2/health/live", "/v2/health/ready", "/", "/docs", "/try.js"):
                    assert client.ask("GET", path)[0] == 200, path
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"bearer {KEY}"}):
            with contextlib.closing(server.client(headers=headers)) as client:
                assert client.json("POST", INFER, question(X))[0] == 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl makes a certificate here")
def test_tls(serving, bundles, tmp_path):
    pair = ["-keyout", "key.pem", "-out", "cert.pem", "-subj", "/CN=localhost"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    names = ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(
        [shutil.which("openssl"), "req", "-x509", *kind, *pair, *names],
        cwd=tmp_path, check=True, capture_output=True,
    )  # fmt: skip
    words = ("--tls-cert", tmp_path / "cert.pem", "--tls-key", tmp_path / "key.pem")
    with serving(bundles[0], *words, "--host", "localhost") as server:
        assert server.url.startswith("https://localhost:")
        trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))
        with contextlib.closing(server.client(tls=trusting)) as client:
            assert client.json("POST", INFER, question(X))[0] == 200


def test_the_memory_of_a_refused_body_is_given_back(client):
    """Bodies of refused requests are counted as given back, or the ninth would be refused."""
    body = bytes(190_000)
    for _ in range(20):
        assert client.refused(INFER, body)[0] == 400

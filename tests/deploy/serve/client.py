"""A client that can be as wrong as a test wants."""

import http.client
import json


class Client:
    """One connection."""

    def __init__(self, port, *, tls=None, headers=None):
        self._http = (
            http.client.HTTPSConnection("localhost", port, timeout=30, context=tls)
            if tls
            else http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        )
        self._always = headers or {}

    def ask(self, method, path, body=None, headers=None):
        """Return status, headers and body."""
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
        self._http.request(method, path, body, {**self._always, **(headers or {})})
        answer = self._http.getresponse()
        return answer.status, answer.headers, answer.read()

    def json(self, method, path, body=None, headers=None):
        """Return status and decoded body."""
        status, _, said = self.ask(method, path, body, headers)
        return status, json.loads(said)

    def refused(self, path, body, headers=None):
        """Return the status and the sentence of a refusal in the protocol's form."""
        status, said = self.json("POST", path, body, headers)
        assert status >= 400
        assert list(said) == ["error"]
        return status, said["error"]

    def close(self):
        self._http.close()


def question(x, name="x", datatype="UINT8", **changes):
    """Return a JSON request for raw samples ``(n, ...)``."""
    tensor = {"name": name, "datatype": datatype, "shape": list(x.shape), "data": x.tolist()}
    return {"inputs": [{**tensor, **changes}]}


def binary(x, name="x", datatype="UINT8", *, size=None, **request):
    """Return body and headers of a binary request."""
    parameters = {"binary_data_size": x.nbytes if size is None else size}
    tensor = {"name": name, "datatype": datatype, "shape": list(x.shape), "parameters": parameters}
    head = json.dumps({"inputs": [tensor], **request}).encode()
    return head + x.tobytes(), {"Inference-Header-Content-Length": str(len(head))}

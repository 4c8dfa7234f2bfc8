"""Load, nonsense and clients that vanish, for minutes: `python3 soak.py http://127.0.0.1:8000 --minutes 10`.

Needs nothing but Python. Ends with an error when an answer is wrong, the server stops answering, or blocks of the
cache are still owned when all is over. Prints the server's memory where it can see it (--pid).
"""

import argparse
import http.client
import json
import pathlib
import random
import socket
import threading
import time
import urllib.parse


class Soak:
    def __init__(self, url: str, pid: int | None) -> None:
        parts = urllib.parse.urlsplit(url)
        self.host, self.port, self.pid = parts.hostname, parts.port or 80, pid
        self.counts: dict[str, int] = {}
        self.failures: list[str] = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    def count(self, what: str) -> None:
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1

    def request(self, method: str, path: str, body: bytes | None = None, kind: str = "application/json"):
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        connection.request(method, path, body, {"content-type": kind})
        response = connection.getresponse()
        return response.status, response.read()

    def stream(self, rng: random.Random) -> None:
        tokens = rng.randint(1, 60)
        body = {
            "prompt": f"{rng.randint(0, 10**6)} apples and", "max_tokens": tokens, "temperature": 1, "seed": 1,
            "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True}, "n": rng.choice([1, 1, 1, 3]),
        }
        status, text = self.request("POST", "/v1/completions", json.dumps(body).encode())
        if status == 429:
            return self.count("refused: the queue is full")
        events = [event.removeprefix("data: ") for event in text.decode().split("\n\n") if event.startswith("data: ")]
        assert status == 200 and events[-1] == "[DONE]", (status, text[-300:])
        usage = json.loads(events[-2])["usage"]
        assert usage["completion_tokens"] == tokens * body["n"], usage
        self.count("streams")

    def nonsense(self, rng: random.Random) -> None:
        bodies = [
            b"{", b"[]", b'{"prompt": 7}', b'{"prompt": "a", "temperature": "hot"}', rng.randbytes(200),
            json.dumps({"prompt": "a" * 200_000}).encode(), json.dumps({"prompt": [10**7]}).encode(),
            json.dumps({"model": "other", "prompt": "a"}).encode(), b'{"a":' * 5000,
        ]
        status, text = self.request("POST", "/v1/completions", rng.choice(bodies))
        assert 400 <= status < 500 and "message" in json.loads(text)["error"], (status, text[:300])
        self.count("malformed requests")

    def vanish(self, rng: random.Random) -> None:
        body = json.dumps({"prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": rng.random() < 0.5}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        data = head.encode() + body
        with socket.create_connection((self.host, self.port), timeout=60) as connection:
            connection.sendall(data[: rng.choice([3, len(head), len(data), len(data)])])
            if rng.random() < 0.3:
                connection.shutdown(socket.SHUT_WR)
            time.sleep(rng.random() / 2)
        self.count("clients that vanished")

    def work(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self.over.is_set():
            act = rng.choices([self.stream, self.nonsense, self.vanish], [8, 1, 1])[0]
            try:
                act(rng)
            except Exception as error:  # whatever it is, the soak tells it and goes on
                with self.lock:
                    self.failures.append(f"{act.__name__}: {error!r}")

    def metric(self, name: str) -> float:
        text = self.request("GET", "/metrics")[1].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name + "{"))

    def memory(self) -> str:
        if self.pid is None:
            return "unknown"
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return next(line.split(":")[1].strip() for line in status.splitlines() if line.startswith("VmRSS"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--pid", type=int)
    args = parser.parse_args()
    soak = Soak(args.url, args.pid)
    threads = [threading.Thread(target=soak.work, args=[seed], daemon=True) for seed in range(args.clients)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + 60 * args.minutes
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, 30))
        print(f"{left:6.0f} s left, memory {soak.memory()}, {len(soak.failures)} failures, {soak.counts}", flush=True)
    soak.over.set()
    for thread in threads:
        thread.join(180)
    time.sleep(2)
    owned = soak.metric("artel:kv_blocks_used")
    print(f"blocks still owned {owned:.0f}, memory {soak.memory()}, {soak.counts}")
    for failure in soak.failures[:10]:
        print(failure)
    healthy = soak.request("GET", "/health")[0] == 200
    raise SystemExit(0 if healthy and not owned and not soak.failures else 1)


if __name__ == "__main__":
    main()

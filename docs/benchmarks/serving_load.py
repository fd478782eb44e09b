"""How many pictures a second does the server predict, how long does a client wait, and does its memory grow?

A model is fitted on generated JPEGs and saved; ``sktl serve`` runs in one process, the clients in another, each with a
connection of its own, one picture per request. The rate is compared with ``predict_proba`` on the same pictures in one
call, offline, in rounds that take turns::

    python docs/benchmarks/serving_load.py --backbone resnet50 --requests 10000
    python docs/benchmarks/serving_load.py --backbone mobilenetv3_small_100 --requests 10000 --broken FOLDER

``--broken`` posts every file of a folder, and counts the answers by status. Clients and server share the cores of the
machine, so that what the clients take is missing in the server's rate.
"""

import argparse
import http.client
import json
import multiprocessing
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import joblib
import numpy as np
from embedding_speed import write_photos
from http_load import load, post_request
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktl import PretrainedFeatureTransformer

BOUNDARY = "sktl-load"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def form_of(name, content):
    """A form with one file."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="images"; filename="{name}"\r\n\r\n'
    return head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


def post(connection, body):
    """Send a form; returns status and content of the answer."""
    connection.request("POST", "/predict", body, {"Content-Type": FORM})
    answer = connection.getresponse()
    return answer.status, answer.read()


def metric(url, name):
    """Read a number from the server's metrics."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return float(re.search(rf"^{name} (\S+)$", text, re.MULTILINE)[1])


def requests_of(contents, body):
    """Return what clients send: each picture as a form, or as it is."""
    if body == "raw":
        return [post_request("/predict", "image/jpeg", content) for content in contents]
    forms = [form_of(f"{number}.jpg", content) for number, content in enumerate(contents)]
    return [post_request("/predict", FORM, form) for form in forms]


def fit_model(backbone, paths):
    """A pipeline whose labels mean nothing: what counts is the work."""
    embed = PretrainedFeatureTransformer(backbone, weights="pretrained" if backbone.startswith("sktl/") else None)
    model = make_pipeline(embed.set_params(cache_bytes=0), StandardScaler(), LogisticRegression(max_iter=200))
    return model.fit(paths[:64], np.arange(64) % 8)


def start_server(path):
    """Start ``sktl serve``; returns the process and where it listens."""
    words = [sys.executable, "-m", "sktl", "serve", str(path), "--port", "0"]
    server = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    line = server.stdout.readline()
    return server, re.search(r"is served at (\S+) ", line)[1]


def measure(model, url, contents, arguments):
    """Take turns between offline and served rounds; print rates, waiting times, CPU time and memory."""
    address = (urlsplit(url).hostname, urlsplit(url).port)
    share = -(-arguments.requests // arguments.rounds)
    requests = requests_of(contents, arguments.body)
    offline, loads, memory, server_cpu = [], [], [], []
    with multiprocessing.get_context("spawn").Pool(1) as clients:
        clients.apply(load, (address, requests, arguments.clients, 2 * arguments.clients))
        model.predict_proba(contents)
        for _ in range(arguments.rounds):
            offline.append(Offline.of(model, contents))
            used = metric(url, "process_cpu_seconds_total")
            loads.append(clients.apply(load, (address, requests, arguments.clients, share)))
            server_cpu.append(metric(url, "process_cpu_seconds_total") - used)
            memory.append(metric(url, "process_resident_memory_bytes") / 2**20)
    report(offline, loads, server_cpu, share, arguments)
    batch = metric(url, "sktl_batch_images_sum") / metric(url, "sktl_batch_images_count")
    print(f"images per pass        {batch:8.1f}")
    print(f"memory after each {share:,} requests, MiB: {', '.join(f'{each:.0f}' for each in memory)}")


class Offline(NamedTuple):
    """A call of ``predict_proba``."""

    rate: float
    cpu: float

    @classmethod
    def of(cls, model, contents):
        """Call it, and say how many pictures a second, and how many CPU seconds for each."""
        started, used = time.perf_counter(), time.process_time()
        model.predict_proba(contents)
        elapsed, used = time.perf_counter() - started, time.process_time() - used
        return cls(len(contents) / elapsed, used / len(contents))


def report(offline, loads, server_cpu, share, arguments):
    """Print what was measured."""
    offline_rate = statistics.median(each.rate for each in offline)
    served_rate = statistics.median(share / each.elapsed for each in loads)
    p50, p99, most = np.percentile([seconds for each in loads for seconds in each.waited], [50, 99, 100]) * 1000
    statuses = sum((each.statuses for each in loads), Counter())
    offline_cpu = statistics.median(each.cpu for each in offline)
    per_request = [sum(cpu) / share / arguments.rounds for cpu in (server_cpu, [each.cpu for each in loads])]
    print(f"offline, one call      {offline_rate:8.1f} images/s")
    print(
        f"served, {arguments.clients:3} clients    {served_rate:8.1f} images/s, {served_rate / offline_rate:.2f} of it"
    )
    print(f"waiting                {p50:8.1f} ms median, {p99:.1f} ms p99, {most:.1f} ms at most")
    print(
        f"CPU time per image     {1000 * offline_cpu:8.2f} ms offline; {1000 * per_request[0]:.2f} ms server, "
        f"{1000 * per_request[1]:.2f} ms clients"
    )
    print(f"answers                {json.dumps(dict(statuses))}")


def post_broken(url, folder):
    """Post every file of a folder; print how many answers of each status there were."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(address.hostname, address.port, timeout=60)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    statuses = Counter(post(connection, form_of(path.name, path.read_bytes()))[0] for path in files)
    connection.close()
    print(f"{len(files)} files of {folder.name}: {json.dumps(dict(statuses))}, 5xx: {_count_errors(statuses)}")


def _count_errors(statuses):
    return sum(count for status, count in statuses.items() if status >= 500)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mobilenetv3_small_100", help="with random weights, unless it is sktl's")
    parser.add_argument("--files", type=int, default=256)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--body", choices=["form", "raw"], default="form", help="how a picture is sent")
    parser.add_argument("--broken", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        paths = write_photos(folder, max(64, arguments.files))
        model = fit_model(arguments.backbone, paths)
        joblib.dump(model, Path(folder, "model.joblib"))
        contents = [Path(path).read_bytes() for path in paths]
        print(f"{arguments.backbone}: {len(contents)} JPEGs of {np.mean([len(c) for c in contents]) / 1024:.0f} KiB")
        server, url = start_server(Path(folder, "model.joblib"))
        try:
            measure(model, url, contents, arguments)
            if arguments.broken:
                post_broken(url, arguments.broken)
        finally:
            server.terminate()
            print(f"exit status after SIGTERM: {server.wait(60)}")


if __name__ == "__main__":
    main()

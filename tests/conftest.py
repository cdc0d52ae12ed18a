from __future__ import annotations

import itertools
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import settings

from tests import running

settings.register_profile("treeadv", deadline=None)  # other load of the machine can make an example slow
settings.load_profile("treeadv")
_names = (f"bucket-{n}" for n in itertools.count())
# A shell ignores SIGINT in its background jobs. The runs that tests interrupt would inherit this setting
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests import tiny

    return tiny.save(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", autouse=True)
def end_all_runs() -> Iterator[None]:
    yield
    running.end_all()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """Start a real HTTP server with the API of S3, and yield its address."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # this logger prints one line for each request
    server = pytest.importorskip("moto.server", reason="moto is not installed").ThreadedMotoServer(
        "127.0.0.1", 0, verbose=False
    )
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any, str]:
    """Make a new bucket. Return (name, client, URI of a run's folder in the bucket)."""
    boto3 = pytest.importorskip("boto3", reason="boto3 is not installed")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    client = boto3.client("s3", endpoint_url=s3, region_name="us-east-1")
    name = next(_names)
    client.create_bucket(Bucket=name)
    return name, client, f"s3://{name}/runs/one?scheme=http&endpoint_override={urlsplit(s3).netloc}&region=us-east-1"

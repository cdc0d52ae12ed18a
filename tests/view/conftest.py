from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.view.runs import STEP_KEPT, keep_log_probs, run_of
from treeadv.view.catalogue import Catalogue
from treeadv.view.server import Server
from treeadv.view.sources import open_source


@pytest.fixture(scope="package")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = run_of(tmp_path_factory.mktemp("view"), tiny_model)
    keep_log_probs(path, STEP_KEPT, 0.25)
    return path


@pytest.fixture
def catalogue(run: Path) -> Catalogue:
    made = Catalogue(open_source(run))
    made.read_all()
    return made


@pytest.fixture
def server(catalogue: Catalogue) -> Iterator[Server]:
    import threading

    with Server(catalogue) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield made
        made.shutdown()
        thread.join()

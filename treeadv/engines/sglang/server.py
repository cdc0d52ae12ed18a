"""The server of SGLang that this process starts, watches and ends."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import signal
import socket
import sys
from importlib import metadata
from pathlib import Path

import treeadv
from treeadv.engine_config import SGLangConfig
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject
from treeadv.sections import GeneratorConfig

GRACE = 1.0  # seconds between the signal to end and the kill
TAIL = 12  # lines of the server's output that an error quotes

_COMMON: JsonObject = {
    "host": "127.0.0.1",
    "weight-version": "0",
    "log-level": "warning",
    "enable-metrics": True,
    "skip-server-warmup": True,
}
# The options without a GPU. They choose SGLang's torch fallbacks, a pool of fixed size (the default is a share of all
# memory), and sleep while idle (the default polls).
_CPU: JsonObject = {
    "sleep-on-idle": True,
    "attention-backend": "torch_native",
    "grammar-backend": "none",
    "disable-cuda-graph": True,
    "max-total-tokens": 20000,
    "max-running-requests": 64,
    "mem-fraction-static": 0.5,
}
# The entropy tap reads the logits of the next draw. With the overlap schedule its values would belong to other tokens.
_EXACT: JsonObject = {"enable-custom-logit-processor": True, "disable-overlap-schedule": True}


def arguments(config: GeneratorConfig, model_dir: str, port: int) -> list[str]:
    """Return the server's command line. `generator.sglang.args` overrides it. The value true adds a flag without a
    value; the value false removes a flag.
    """
    s = config.sglang
    chosen = _COMMON | (_CPU if s.device == "cpu" else {}) | (_EXACT if s.entropy == "exact" else {})
    chosen |= {"device": s.device, "dtype": config.dtype, "model-path": model_dir, "port": port}
    chosen |= {name.replace("_", "-"): value for name, value in s.args.items()}
    out: list[str] = []
    for name, value in chosen.items():
        if value is not False:
            out += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return out


def environment(s: SGLangConfig, threads: int) -> dict[str, str]:
    """Return additional environment variables of the server.

    They add treeadv to the Python path. Without a GPU and without SGLang's kernel package they also add
    `generator.sglang.stubs`, whose modules replace that package. Raises `BadInput` if SGLang or these modules are
    missing."""
    if importlib.util.find_spec("sglang") is None:
        raise BadInput(
            "generator.engine=sglang: SGLang is not installed on this machine; run `make sglang-cpu`, or give"
            " generator.sglang.url"
        )
    paths = [str(Path(treeadv.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    added = {"OMP_NUM_THREADS": str(threads)} if threads else {}
    if s.device == "cpu":
        added["SGLANG_USE_CPU_ENGINE"] = "1"
        if not _kernel_installed():
            if not (Path(s.stubs) / "sgl_kernel").is_dir() or not s.stubs:
                raise BadInput(
                    f"generator.sglang.stubs={s.stubs!r}: SGLang's kernel "
                    "package is not installed and this folder has no stand-ins; "
                    "give the repository's deploy/sglang_cpu/stubs"
                )
            paths.insert(0, str(Path(s.stubs).resolve()))
    return added | {"PYTHONPATH": os.pathsep.join(paths)}


def _kernel_installed() -> bool:
    for name in ("sglang-kernel", "sgl-kernel", "sgl-kernel-cpu"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            metadata.distribution(name)
            return True
    return False


class ServerProcess:
    """The process group of a server. The output of the server goes to the file `log`."""

    def __init__(self, process: asyncio.subprocess.Process, url: str, log: Path) -> None:
        self.process, self.url, self.log = process, url, log

    @classmethod
    async def start(cls, config: GeneratorConfig, model_dir: str, log: Path) -> ServerProcess:
        """Start a server on a free port of this machine. The server is not ready yet when this returns.

        Raises `BadInput` on a machine where SGLang cannot run.
        """
        added = environment(config.sglang, config.threads)
        port = free_port()
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "treeadv.engines.sglang.launch",
                *arguments(config, model_dir, port),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=os.environ | added,
                start_new_session=True,
            )
        return cls(process, f"http://127.0.0.1:{port}", log)

    @property
    def ended(self) -> bool:
        return self.process.returncode is not None

    def tail(self) -> str:
        """Return the last lines of the server's output."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-TAIL:])

    async def stop(self) -> None:
        """End the server and all its children."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                await self.process.wait()
        self._signal(signal.SIGKILL)
        await self.process.wait()

    def _signal(self, which: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # the whole group has ended already
            os.killpg(self.process.pid, which)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]

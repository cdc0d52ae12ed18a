"""Manages one SGLang server of the engine. Starts or finds the server, checks it, loads weights and requests chunks."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from treeadv.config import Config
from treeadv.engines.base import Weights
from treeadv.engines.fleet.addresses import own_address
from treeadv.engines.fleet.member import Loaded, Member, Refused, ServerGone
from treeadv.engines.sglang import features, probe
from treeadv.engines.sglang.client import Client
from treeadv.engines.sglang.entropy import TEMPERATURE, reference
from treeadv.engines.sglang.reply import Ask, Chunk, read, sent_back
from treeadv.engines.sglang.server import ServerProcess
from treeadv.engines.sglang.weights import Broadcast, Disk, SharedMemory, Transport, flush, update
from treeadv.errors import BadInput
from treeadv.jsonl import JsonObject

POLL = 0.2  # seconds between two requests to a server that starts
QUEUE = 2  # largest number of open requests, as a multiple of the requests that the server decodes at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """The properties of the learner's model that a server must share."""

    folder: str
    vocabulary: int
    architectures: list[str]
    tied: bool
    shapes: dict[str, list[int]]  # shapes of the tensors by name

    @classmethod
    def read(cls, folder: str) -> Model:
        settings = json.loads((Path(folder) / "config.json").read_text())
        shapes: dict[str, list[int]] = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, "np") as tensors:
                names = tensors.keys()  # the file is no mapping, so it cannot be iterated
                shapes |= {name: tensors.get_slice(name).get_shape() for name in names}
        return cls(
            folder=folder,
            vocabulary=settings["vocab_size"],
            architectures=settings["architectures"],
            tied=settings.get("tie_word_embeddings", False),
            shapes=shapes,
        )

    def check(self, weights: Weights) -> None:
        """Raise `ValueError` for weights of another model, because a server crashes on a tensor of another shape."""
        given = {n: list(w.shape) for n, w in weights.items() if not (self.tied and n == "lm_head.weight")}
        wrong = sorted(n for n in given.keys() | self.shapes.keys() if given.get(n) != self.shapes.get(n))
        if wrong:
            n = wrong[0]
            raise ValueError(
                f"these weights are of another model: {n} is {given.get(n)}, and {self.shapes.get(n)} in {self.folder}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The capacity of a server in tokens and requests."""

    context: int  # largest number of tokens of a path: prefix and drawn tokens
    pool: int  # tokens whose keys and values fit into the cache, over all requests
    running: int  # requests decoded at a time
    ranks: int  # tensor-parallel size


class SGLangMember(Member[dict[str, torch.Tensor]]):
    """A server at `url`. Without a `url` it starts a server process."""

    def __init__(self, config: Config, model: Model, run: str, disk: Disk, url: str = "") -> None:
        """Keep the settings. `run` is the name of the run in the radix cache. `disk` is the folder for weights."""
        self._config, self._s, self._model, self._run, self._disk = config, config.generator.sglang, model, run, disk
        super().__init__(url)
        self._owned = not url
        self.difference: probe.ProbeError | None = None
        self.limits: Limits | None = None
        self.process: ServerProcess | None = None
        self._client: Client | None = None
        self._transport: Transport | None = None
        self._room = asyncio.Semaphore(1)
        self._settled = asyncio.Event()  # set while no update runs
        self._settled.set()
        self._loads = 0

    @property
    def client(self) -> Client:
        if self._client is None:
            raise ServerGone(f"{self.url} is not up")
        return self._client

    # ---- start -------------------------------------------------------------------------------------------------------
    async def bring_up(self) -> None:
        """Start or reach the server, and check that it serves the learner's model as version 0.

        Raises `BadInput`, `ServerGone` or `Refused`.
        """
        await self.shut()
        if self._owned:
            self.process = await ServerProcess.start(
                self._config.generator, self._model.folder, self._disk.folder.with_name("sglang.log")
            )
            self.url = self.process.url
        self._client = Client(self.url, self._s.timeout, self._s.start_timeout)
        await self._answering()
        answers = await features.check(self.client, self._s.weights, self._s.entropy == "exact")
        info = answers[features.IDENTITY]
        await self.client.post("/continue_generation")  # a failed update leaves the server paused
        self.limits = self._limits(answers[features.SERVER], answers[features.MODELS]["max_model_len"])
        await self._check_tokenizer()
        self._room = asyncio.Semaphore(QUEUE * self.limits.running)
        self._transport = self._choose_transport(self.limits.ranks)
        probe.check_model(self.url, info, self._model.architectures, self._model.folder)
        await self._as_version_0(str(info["weight_version"]))
        await self._check_numbers()

    async def _answering(self) -> None:
        deadline = asyncio.get_running_loop().time() + self._s.start_timeout
        while True:
            try:
                await self.client.get(features.IDENTITY, timeout=5.0)
                return
            except (ServerGone, Refused) as not_yet:
                if isinstance(not_yet, Refused) and not await self.client.offers(features.IDENTITY):
                    raise features.unsupported(self.url, [features.IDENTITY]) from not_yet
                if self.process and self.process.ended:
                    raise BadInput(
                        f"SGLang ended while it started; the end of {self.process.log}:\n{self.process.tail()}"
                    ) from not_yet
                if asyncio.get_running_loop().time() > deadline or not self._owned:
                    raise ServerGone(f"{self.url} does not answer: {not_yet}") from not_yet
            await asyncio.sleep(POLL)

    def _limits(self, info: JsonObject, context: int) -> Limits:
        if self._s.entropy == "exact" and not (
            info["enable_custom_logit_processor"] and info["disable_overlap_schedule"]
        ):
            raise BadInput(
                f"{self.url}: generator.sglang.entropy=exact needs a "
                "server started with --enable-custom-logit-processor and "
                "--disable-overlap-schedule; add these options, or choose entropy=lower"
            )
        if info.get("dp_size", 1) != 1:
            raise BadInput(
                f"{self.url}: the server runs dp_size={info['dp_size']} copies of the model; start one server for each"
                " copy and name all of them in generator.sglang.url"
            )
        return Limits(
            context=context,
            pool=info["max_total_num_tokens"],
            running=info["max_running_requests"],
            ranks=info["tp_size"],
        )

    def _choose_transport(self, ranks: int) -> Transport:
        if self._s.weights == "disk":
            return self._disk
        if self._s.weights == "tensor":
            return SharedMemory(ranks)
        return Broadcast(ranks, self._s.device, own_address(self.url), self._s.start_timeout)

    async def _as_version_0(self, weight_version: str) -> None:
        """Make the weights of the model folder version 0.

        A server with weights of an earlier run loads the folder again.
        """
        if weight_version == "default":
            await self.client.post("/update_weight_version", {"new_version": "0", "abort_all_requests": False})
        elif weight_version != "0":
            # The flush is a separate call. A server that has just answered is not idle yet, and some releases crash if
            # they flush then.
            body = {"model_path": self._model.folder, "weight_version": "0", "flush_cache": False}
            await self.client.post("/update_weights_from_disk", body)
            await flush(self.client)
        self.version = 0

    async def _check_tokenizer(self) -> None:
        text, ours = await asyncio.to_thread(probe.tokens_of, self._model.folder, self._model.vocabulary)
        theirs = probe.prompt_tokens(await self.client.generate(probe.echo(text)))[
            -len(ours) :
        ]  # the special tokens at the start are left out
        if theirs != ours:
            raise BadInput(
                f"{self.url}: its tokenizer is not that of {self._model.folder}: {text!r} becomes {theirs}, and the"
                f" learner's tokenizer gives {ours}; start the server with this folder"
            )

    async def _check_numbers(self) -> None:
        ids = probe.prefix(self._model.vocabulary)
        temperatures = [self._config.sampling.temperature, probe.HOT]
        try:
            chunks = [await self.draw(ids, probe.DRAWN, t, frozenset()) for t in temperatures]
        except Refused as e:
            raise BadInput(f"{self.url}: the start-up probe was answered with: {e}") from e
        self.difference = await asyncio.to_thread(
            probe.compare, self._model.folder, self._config.generator.dtype, ids, chunks, temperatures
        )
        probe.check_difference(self.url, self.difference, self._s.max_logprob_error, self._s.entropy == "exact")

    async def ended(self) -> str:
        if self.process is None:
            await asyncio.Event().wait()  # waits for ever, because this process did not start the server
        assert self.process is not None
        return f"its process ended with code {await self.process.process.wait()}"

    async def shut(self) -> None:
        if self._transport:
            await self._transport.close()
        if self._client:
            await self._client.close()
        if self.process:
            await self.process.stop()
        self._transport = self._client = self.process = None

    # ---- work --------------------------------------------------------------------------------------------------------
    async def draw(self, ids: list[int], tokens: int, temperature: float, stop: frozenset[int]) -> Chunk:
        """Draw up to `tokens` tokens after `ids`. Raises `ServerGone` or `Refused`."""
        async with self._room:
            while True:
                await (
                    self._settled.wait()
                )  # a request that starts during an update would get the previous version as its label
                loads = self._loads
                ask = Ask(
                    tokens=tokens, entropy=self._s.entropy, vocabulary=self._model.vocabulary, version=self.version
                )
                body = await self.client.generate(self._payload(ids, ask, temperature, stop))
                if self._loads == loads or not sent_back(body):
                    return read(body, ask)

    def _payload(self, ids: list[int], ask: Ask, temperature: float, stop: frozenset[int]) -> JsonObject:
        drawing = {
            "temperature": temperature,
            "max_new_tokens": ask.tokens,
            "stop_token_ids": sorted(stop),
            "skip_special_tokens": False,
            "custom_params": {
                TEMPERATURE: temperature or 1.0
            },  # 0 is greedy; its log-probs and entropies are those at temperature 1
        }
        exact = (
            {"custom_logit_processor": reference()} if ask.entropy == "exact" else {"top_logprobs_num": self._s.top_k}
        )
        return {
            "input_ids": ids,
            "sampling_params": drawing,
            "return_logprob": True,
            # All forests of a run share prefixes. Two policy versions never share a prefix.
            "extra_key": f"{self._run}/v{ask.version}",
        } | exact

    async def load(self, version: int, tensors: dict[str, torch.Tensor]) -> Loaded:
        """Load a policy version. After an error the server must not serve."""
        assert self._transport is not None, "the server has not been brought up"
        self._loads += 1
        self._settled.clear()
        try:
            loaded = await update(self.client, self._transport, version, tensors)
            self.version = version
        finally:
            self._settled.set()
        return loaded

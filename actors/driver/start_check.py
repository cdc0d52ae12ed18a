"""The checks of Ray before a run folder is created. They cover the answer of the cluster, the lengths of socket
paths, and the GPUs."""

from __future__ import annotations

import logging
import os
import re
import socket

import ray
from ray.exceptions import AuthenticationError

from treeadv.checks import check_devices
from treeadv.config import Config
from treeadv.errors import BadInput, one_line

SOCKET_LIMIT = 107  # bytes; the longest path that the system allows for a Unix socket
SESSION = "ray/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store.1"  # the longest path that Ray makes
PATIENCE = 10.0  # seconds that a cluster may take to accept a connection
# The first bytes of an HTTP/2 client, and the type of the first frame of a server (RFC 9113, 3.4). Ray uses HTTP/2.
_HTTP2, _SETTINGS = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), b"\x04"
_TOKEN = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a copy of ~/.ray/auth_token of the head node"


def check_ray(config: Config) -> None:
    """Join the cluster at RAY_ADDRESS, or check that this machine can start one for `config`. Raises `BadInput`."""
    check_machine(config)
    if os.environ.get("RAY_ADDRESS"):
        join_cluster()


def check_machine(config: Config) -> None:
    """Raise `BadInput` if this machine cannot run `config`. This function joins and starts no cluster."""
    hidden = os.environ.get("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO") != "0"
    if config.learner.device == "cuda" and not config.learner.gpus and hidden:
        raise BadInput("learner.device=cuda with learner.gpus=0: Ray hides the GPUs of the learner; set learner.gpus")
    if not os.environ.get("RAY_ADDRESS"):
        check_devices(config)
        _check_temporary_folder()


def join_cluster() -> None:
    """Join the cluster at RAY_ADDRESS, unless this process has already joined a cluster.

    Raises `BadInput` if the cluster does not answer or asks for a token."""
    if ray.is_initialized():
        return
    address = os.environ["RAY_ADDRESS"]
    _check_answers(address)
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except AuthenticationError as e:
        raise BadInput(f"RAY_ADDRESS={address}: the cluster asks for a token ({one_line(e)[:70]}); {_TOKEN}") from e
    except Exception as e:  # Ray raises ConnectionError, RuntimeError, RaySystemError and other types
        raise BadInput(
            f"RAY_ADDRESS={address}: cannot be joined ({one_line(e)}); if the cluster asks for a token, {_TOKEN};"
            " to use this machine alone, unset RAY_ADDRESS"
        ) from e


def _check_answers(address: str) -> None:
    """Raise `BadInput` if no server accepts a connection at HOST:PORT. Ray itself would try for minutes."""
    place = re.fullmatch(r"(?:ray://)?\[?(?P<host>[^\]]+?)\]?:(?P<port>\d+)", address)
    if place is None:
        if address not in ("auto", "local"):
            raise BadInput(f"RAY_ADDRESS={address}: write HOST:PORT, ray://HOST:PORT or auto")
        return
    try:
        with socket.create_connection((place["host"], int(place["port"])), PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(_HTTP2)
            answer = connection.recv(4)
    except (OSError, OverflowError) as e:
        raise BadInput(
            f"RAY_ADDRESS={address}: no cluster answers there ({one_line(e)}); unset it to use this machine alone"
        ) from e
    if answer[3:] != _SETTINGS:
        raise BadInput(f"RAY_ADDRESS={address}: this server is not a Ray cluster; unset it to use this machine alone")


def _check_temporary_folder() -> None:
    name = next((name for name in ("RAY_TMPDIR", "TMPDIR") if name in os.environ), None)
    if name is None:
        return
    length = len(os.fsencode(os.path.join(os.environ[name], SESSION)))
    if length > SOCKET_LIMIT:
        raise BadInput(
            f"{name}={os.environ[name]}: {length - SOCKET_LIMIT} bytes too long for the paths of Ray's sockets;"
            " set RAY_TMPDIR=/tmp"
        )

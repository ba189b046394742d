"""The apps that the pre-fork tests serve: they answer at once, slowly, or with their process ID."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import Any

from fastapi import FastAPI, WebSocket, WebSocketDisconnect
from flask import Flask

import gpuscale

flask_app = Flask(__name__)


@flask_app.get("/pid")
def flask_pid() -> str:
    return str(os.getpid())


@flask_app.get("/busy/<float:seconds>")
def flask_busy(seconds: float) -> str:
    time.sleep(seconds)
    return str(os.getpid())


@flask_app.get("/slow/<float:seconds>")
def flask_slow(seconds: float) -> str:
    time.sleep(seconds)
    return "done"


fast_app = FastAPI()


@fast_app.get("/pid")
async def fast_pid() -> int:
    return os.getpid()


@fast_app.get("/slow/{seconds}")
async def fast_slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "done"


@fast_app.get("/busy/{seconds}")
async def fast_busy(seconds: float) -> int:
    time.sleep(seconds)  # on the event loop, as a handler must not
    return os.getpid()


@fast_app.websocket("/echo/{name}")
async def fast_echo(websocket: WebSocket, name: str) -> None:
    await websocket.accept()
    with contextlib.suppress(WebSocketDisconnect):
        while True:
            await websocket.send_text(await websocket.receive_text())


# Each server imports one of them; only that one is instrumented, as a user would.
if os.environ.get("TEST_APP") == "flask":
    metrics: gpuscale.Metrics[Any] = gpuscale.instrument(flask_app)
else:
    metrics = gpuscale.instrument(fast_app)

"""The application: which address does what. It knows an engine, and builds the parts around it."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import HTTPException
from pydantic import BaseModel
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from eagle import __version__
from eagle.decoding import Engine, Result
from eagle.errors import EagleError
from eagle.serve.answering import Events, Whole
from eagle.serve.bodies import checked
from eagle.serve.forms import ChatForm, Form, TextForm, acceptance, usage
from eagle.serve.guard import Gate, Guard
from eagle.serve.layers import Counted, Direct, Endpoint, Shortcut
from eagle.serve.metrics import Metrics
from eagle.serve.pages import page
from eagle.serve.problems import Problem, encoded, problem_of, response, shut_down
from eagle.serve.requests import Asked, Intake
from eagle.serve.schemas import (
    ChatRequest,
    CompletionRequest,
    SamplingRequest,
    TraceRequest,
)
from eagle.serve.settings import Settings
from eagle.serve.streaming import Stream, sse
from eagle.serve.tokens import TokenTexts
from eagle.serve.watching import Watcher

__all__ = ["Service", "create_app"]


class Service:
    """What the application's addresses share.

    Args:
        engine: what answers.
        settings: names and limits.

    Attributes:
        model: the name that clients know the target by.
        gate: whether requests are let in.
        live: what is with the engine.
        taking: what is on its way there.
    """

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings, self.gate = engine, settings, Gate()
        decoder = engine.decoder
        # What somebody calls a model may be the path of its folder.
        self.model = settings.model or Path(decoder.target.info.name).name
        self.texts = TokenTexts(decoder.target.tokenizer)
        self.intake, self.metrics = Intake(engine, settings), Metrics(engine)
        self.watcher = Watcher(engine, settings, self.texts)
        self.pool = ThreadPoolExecutor(1, "eagle-intake")
        self.live: set[Asked] = set()
        self.taking: set[asyncio.Future[Asked]] = set()
        self._one = asyncio.Lock()
        self._depth = len(engine.stats().accepted_per_position)  # of the deepest tree
        said = json.dumps([__version__, decoder.spec.model_dump(mode="json")], sort_keys=True)
        self.fingerprint = f"eagle-{hashlib.sha256(said.encode()).hexdigest()[:12]}"

    def end(self) -> None:
        """Tell all who still wait, and who come later, that there will be no answer."""
        self.gate.end()
        self.watcher.close()
        self.pool.shutdown(wait=False, cancel_futures=True)
        for taken in list(self.taking):
            taken.cancel()
        for asked in list(self.live):
            asked.stop(shut_down())

    async def answer(self, body: SamplingRequest, request: Request) -> Response:
        """Answer a chat or a completion."""
        self._check_model(body.model)
        loop = asyncio.get_running_loop()
        began = loop.time()
        late = Problem(504, f"no answer within {self.settings.timeout:g} seconds", code="timeout")
        light = self.intake.is_light(body, len(await request.body()))
        asked = await (self._taken_in_here(body) if light else self._taken_in(body, late))
        timer = loop.call_at(began + self.settings.timeout, asked.stop, late)
        self.live.add(asked)
        if self.gate.ended:  # since it was taken in
            asked.stop(shut_down())
        noted = request.state.log
        noted |= {"prompt_tokens": sum(asked.prompts), "answers": len(asked.handles)}

        def done() -> None:
            timer.cancel()
            self.live.discard(asked)
            results = _answers(asked)
            self.metrics.answered(results, asked.prompts)
            cycles = sum(result.stats.cycles for result in results)
            accepted = sum(sum(result.stats.accepted_per_cycle) for result in results)
            noted["new_tokens"] = sum(result.stats.new_tokens for result in results)
            noted["tau"] = round(accepted / cycles, 3) if cycles else None
            noted["decoding"] = round(loop.time() - began, 4)

        how = {
            "asked": asked,
            "stall": self.settings.stall,
            "left": self.metrics.abandoned,
            "done": done,
        }
        form = self._form(body)
        if body.stream:
            stream = Stream(form, asked, lambda: self._figures(asked), usage=body.wants_usage)
            return Events(stream.pieces, **how)
        return Whole(lambda results: form.whole(results, **self._figures(asked)), **how)

    async def _taken_in_here(self, body: SamplingRequest) -> Asked:
        """Return what a body became in the engine, of one that takes no longer than handing it on.

        Raises:
            Problem: a field cannot be honoured, too many requests wait, or the server ends.
        """
        async with self._one:  # in between, what others are answered is sent
            if self.gate.ended:
                raise shut_down()
            return self.intake.submit(body)

    async def _taken_in(self, body: SamplingRequest, late: Problem) -> Asked:
        """Return what a body became in the engine; whoever gives up on it leaves nothing there."""
        if self.gate.ended:
            raise shut_down()
        work = self.pool.submit(self.intake.submit, body)
        taken = asyncio.wrap_future(work)
        self.taking.add(taken)
        try:
            async with asyncio.timeout(self.settings.timeout):
                return await taken
        except TimeoutError as error:
            work.add_done_callback(_dropped)
            raise late from error
        except asyncio.CancelledError as error:
            work.add_done_callback(_dropped)
            if self.gate.ended:
                raise shut_down() from error
            raise
        finally:
            self.taking.discard(taken)

    def _form(self, body: SamplingRequest) -> Form:
        kind = ChatForm if isinstance(body, ChatRequest) else TextForm
        form = kind(
            self.model,
            self.fingerprint,
            self.texts,
            numbers=bool(body.return_token_ids),
            named=bool(body.return_tokens_as_token_ids),
        )
        if isinstance(form, ChatForm):
            form.pieces = bool(getattr(body, "return_pieces", None))
        return form

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.model:
            raise Problem(
                404,
                f"the model {name[:100]!r} is not here; this server has {self.model!r}",
                param="model",
                code="model_not_found",
            )

    def _figures(self, asked: Asked) -> dict[str, Any]:
        results = [handle.result() for handle in asked.handles]
        tokens = sum(result.stats.new_tokens for result in results)
        told = acceptance(results, self._depth)
        return {"usage": usage(asked.prompts, tokens), "metrics": told}

    async def look_on(self, body: TraceRequest, *, plain: bool) -> Response:
        """Answer a conversation cycle by cycle."""

        async def pieces() -> AsyncIterator[bytes]:
            async for told in self.watcher.watch(body, plain=plain):
                yield sse(told)

        return Events(
            pieces,
            asked=Asked([], []),
            stall=self.settings.stall,
            left=lambda count: None,
            done=lambda: None,
        )


def create_app(
    engine: Engine, settings: Settings | None = None, *, service: Service | None = None
) -> Any:
    """Return an ASGI application that answers by an engine.

    Args:
        engine: what answers; whoever made it closes it.
        settings: names and limits.
        service: what it is built on, where somebody keeps that.
    """
    service = service or Service(engine, settings or Settings())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.pool.shutdown(wait=False, cancel_futures=True)
        service.watcher.close()

    # The pages of FastAPI come from elsewhere, and this works offline.
    app = FastAPI(
        title="eagle", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan
    )
    endpoints = _add_answers(app, service)
    _add_looks(app, service)
    _add_errors(app)
    app.openapi = lambda: _openapi(app, FastAPI.openapi)  # type: ignore[method-assign]
    guard = Guard(Shortcut(app, endpoints), service.settings, service.gate)
    return Counted(guard, service.metrics)


def _add_answers(app: FastAPI, service: Service) -> dict[str, Endpoint]:
    async def chat_completions(request: Request) -> Response:
        return await service.answer(await checked(ChatRequest, request), request)

    async def completions(request: Request) -> Response:
        return await service.answer(await checked(CompletionRequest, request), request)

    answering: tuple[tuple[str, Endpoint, type[BaseModel]], ...] = (
        ("/v1/chat/completions", chat_completions, ChatRequest),
        ("/v1/completions", completions, CompletionRequest),
    )
    for path, endpoint, body in answering:
        app.router.add_api_route(
            path,
            endpoint,
            methods=["POST"],
            openapi_extra=_body_of(body),
            route_class_override=Direct,
        )

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(service)]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        service._check_model(name)
        return _json(_model(service))

    @app.get("/health")
    async def health() -> Response:
        if service.gate.closing or service.engine.closed:
            raise Problem(503, "the server is shutting down", code="closing")
        return _json({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        kind = "text/plain; version=0.0.4; charset=utf-8"
        return Response(service.metrics.text(), headers={"content-type": kind})

    return {path: endpoint for path, endpoint, _ in answering}


def _add_looks(app: FastAPI, service: Service) -> None:
    @app.get("/eagle/info")
    async def info() -> Response:
        limits = {"capacity": service.engine.decoder.capacity}
        return _json({"model": service.model, **service.watcher.choices(), **limits})

    @app.post("/eagle/trace", openapi_extra=_body_of(TraceRequest))
    async def trace(request: Request) -> Response:
        return await service.look_on(await checked(TraceRequest, request), plain=False)

    @app.post("/eagle/plain", openapi_extra=_body_of(TraceRequest))
    async def plain(request: Request) -> Response:
        return await service.look_on(await checked(TraceRequest, request), plain=True)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return page()

    @app.get("/page/{name}", include_in_schema=False)
    async def part(name: str) -> Response:
        return page(name)


def _add_errors(app: FastAPI) -> None:
    async def told(request: Request, error: Exception) -> Response:
        return response(problem_of(error))

    async def other(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        texts = {
            404: "there is nothing at this address",
            405: "this method is not for this address",
        }
        text = texts.get(error.status_code, "the request is not valid")
        return response(Problem(error.status_code, text, headers=error.headers))

    app.add_exception_handler(Problem, told)
    app.add_exception_handler(Exception, told)  # which is logged above
    app.add_exception_handler(HTTPException, other)
    app.add_exception_handler(StarletteHTTPException, other)


def _dropped(work: Future[Asked]) -> None:
    """Cancel what was submitted for somebody who no longer waits."""
    if not work.cancelled() and work.exception() is None:
        work.result().cancel()


def _answers(asked: Asked) -> list[Result]:
    """Return what was answered, whatever became of the rest."""
    found = []
    for handle in asked.handles:
        if handle.done:
            with suppress(EagleError):
                found.append(handle.result())
    return found


def _model(service: Service) -> dict[str, Any]:
    own = {"id": service.model, "object": "model", "created": 0, "owned_by": "eagle-decoding"}
    return {**own, "max_model_len": service.engine.decoder.capacity}


def _json(value: Any) -> Response:
    return Response(encoded(value), media_type="application/json")


def _body_of(model: type[BaseModel]) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def _openapi(app: FastAPI, plain: Callable[[FastAPI], dict[str, Any]]) -> dict[str, Any]:
    """Return the schema of all addresses, with those of the bodies that are checked here."""
    schema = plain(app)
    kept = schema.setdefault("components", {}).setdefault("schemas", {})
    for model in (ChatRequest, CompletionRequest, TraceRequest):
        own = model.model_json_schema(ref_template="#/components/schemas/{model}")
        kept |= own.pop("$defs", {})
        kept[model.__name__] = own
    return schema

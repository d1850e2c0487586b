"""The client for programs with an event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import httpx

from avatarforge.client import calls, watching
from avatarforge.client.connection import Connection, answer_of
from avatarforge.client.steps import (
    Answer,
    Load,
    Open,
    Pause,
    Policy,
    Read,
    Request,
    Send,
    Steps,
    Tell,
    Telling,
    Wish,
)

P = ParamSpec("P")
T = TypeVar("T")


class AsyncCall(Generic[P, T]):
    """A call with one result, as a method to await."""

    def __init__(self, steps: Callable[Concatenate[Policy, P], Steps[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...

    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(
        self, client: "AsyncClient | None", owner: type
    ) -> "Self | Callable[P, Coroutine[Any, Any, T]]":
        if client is None:
            return self

        async def method(*args: P.args, **options: P.kwargs) -> T:
            return await client._result(self._steps(client._connection.policy, *args, **options))

        method.__doc__ = self.__doc__
        return method


class AsyncStory(Generic[P, T]):
    """A call with many results, as a method that iterates over them."""

    def __init__(self, steps: Callable[Concatenate[Policy, P], Telling[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...

    @overload
    def __get__(self, client: "AsyncClient", owner: type) -> Callable[P, AsyncGenerator[T, None]]: ...

    def __get__(
        self, client: "AsyncClient | None", owner: type
    ) -> "Self | Callable[P, AsyncGenerator[T, None]]":
        if client is None:
            return self

        def method(*args: P.args, **options: P.kwargs) -> AsyncGenerator[T, None]:
            return client._told(self._steps(client._connection.policy, *args, **options))

        method.__doc__ = self.__doc__
        return method


class AsyncClient:
    """One server. Close it, or use it in an `async with` block."""

    submit = AsyncCall(calls.submit)
    status = AsyncCall(calls.status)
    wait = AsyncCall(calls.wait)
    watch = AsyncStory(watching.watch)
    cancel = AsyncCall(calls.cancel)
    retry = AsyncCall(calls.retry)
    erase = AsyncCall(calls.erase)
    download = AsyncCall(calls.download)
    links = AsyncCall(calls.links)
    deliveries = AsyncCall(calls.deliveries)
    redeliver = AsyncCall(calls.redeliver)
    customers = AsyncStory(calls.customers)
    customer = AsyncCall(calls.customer)
    jobs = AsyncStory(calls.jobs)
    erase_customer = AsyncCall(calls.erase_customer)
    models = AsyncCall(calls.models)
    styles = AsyncCall(calls.styles)
    check = AsyncCall(calls.check)
    is_ready = AsyncCall(calls.is_ready)

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30,
        patience: float = 30,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As for `Client`."""
        self._connection = Connection(url, api_key, timeout, patience)
        self._http = httpx.AsyncClient(transport=transport, **self._connection.options())

    @property
    def url(self) -> str:
        return self._connection.url

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _result(self, steps: Steps[T]) -> T:
        async with aclosing(_Doing(self._http, self._connection)) as doing:
            try:
                wish = next(steps)
                while True:
                    wish = await doing.go_on(steps, wish)
            except _End as end:
                result: T = end.value
                return result

    async def _told(self, steps: Telling[T]) -> AsyncGenerator[T, None]:
        async with aclosing(_Doing(self._http, self._connection)) as doing:
            try:
                wish = next(steps)
                while True:
                    if isinstance(wish, Tell):
                        yield wish.item
                        wish = await doing.go_on(steps, None)
                    else:
                        wish = await doing.go_on(steps, wish)
            except _End:
                return


class _End(Exception):
    """A call has come to its end. Python lets no StopIteration out of a coroutine."""

    def __init__(self, value: Any) -> None:
        super().__init__(value)
        self.value = value


class _Doing:
    """Does what one call wants."""

    def __init__(self, http: httpx.AsyncClient, connection: Connection) -> None:
        self._http = http
        self._connection = connection
        self._stream: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] | None = None

    async def go_on(self, steps: Any, wish: Wish | None) -> Any:
        """What is wanted next, once the wish is done. Raises `_End`."""
        try:
            try:
                reply = await self._done(wish)
            except httpx.TransportError as error:
                return steps.throw(self._connection.lost(error))
            return steps.send(reply)
        except StopIteration as end:
            raise _End(end.value) from None

    async def aclose(self) -> None:
        if self._stream is not None:
            await self._stream.aclose()
            self._stream = None

    async def _done(self, wish: Wish | None) -> object:
        match wish:
            case Send(request):
                return await self._send(request, stream=False)
            case Open(request):
                return await self._send(request, stream=True)
            case Read() if self._chunks is not None:
                return await anext(self._chunks, None)
            case Pause(seconds):
                await asyncio.sleep(seconds)
            case Load(load):
                return await asyncio.to_thread(load)
        return None

    async def _send(self, request: Request, *, stream: bool) -> Answer:
        await self.aclose()
        built = self._http.build_request(**self._connection.arguments(request))
        response = await self._http.send(built, stream=True)
        if stream and response.is_success:
            self._stream, self._chunks = response, response.aiter_bytes()
            return answer_of(response, b"")
        try:
            return answer_of(response, await response.aread())
        finally:
            await response.aclose()

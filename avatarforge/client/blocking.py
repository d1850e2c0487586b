"""The client for programs without an event loop."""

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
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


class Call(Generic[P, T]):
    """A call with one result, as a method."""

    def __init__(self, steps: Callable[Concatenate[Policy, P], Steps[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, T]: ...

    def __get__(self, client: "Client | None", owner: type) -> "Self | Callable[P, T]":
        if client is None:
            return self

        def method(*args: P.args, **options: P.kwargs) -> T:
            return client._result(self._steps(client._connection.policy, *args, **options))

        method.__doc__ = self.__doc__
        return method


class Story(Generic[P, T]):
    """A call with many results, as a method that iterates over them."""

    def __init__(self, steps: Callable[Concatenate[Policy, P], Telling[T]]) -> None:
        self._steps = steps
        self.__doc__ = steps.__doc__

    @overload
    def __get__(self, client: None, owner: type) -> Self: ...

    @overload
    def __get__(self, client: "Client", owner: type) -> Callable[P, Generator[T, None, None]]: ...

    def __get__(self, client: "Client | None", owner: type) -> "Self | Callable[P, Generator[T, None, None]]":
        if client is None:
            return self

        def method(*args: P.args, **options: P.kwargs) -> Generator[T, None, None]:
            return client._told(self._steps(client._connection.policy, *args, **options))

        method.__doc__ = self.__doc__
        return method


class Client:
    """One server. Close it, or use it in a `with` block. Threads may share it."""

    submit = Call(calls.submit)
    status = Call(calls.status)
    wait = Call(calls.wait)
    watch = Story(watching.watch)
    cancel = Call(calls.cancel)
    retry = Call(calls.retry)
    erase = Call(calls.erase)
    download = Call(calls.download)
    links = Call(calls.links)
    deliveries = Call(calls.deliveries)
    redeliver = Call(calls.redeliver)
    customers = Story(calls.customers)
    customer = Call(calls.customer)
    jobs = Story(calls.jobs)
    erase_customer = Call(calls.erase_customer)
    models = Call(calls.models)
    styles = Call(calls.styles)
    check = Call(calls.check)
    is_ready = Call(calls.is_ready)

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30,
        patience: float = 30,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """By default `url` and `api_key` are what AVATARFORGE_URL and AVATARFORGE_API_KEY say.

        `timeout`: seconds that one answer may take. `patience`: seconds during which a server that does not
        answer or is busy is asked again, where that is safe; 0 asks once.
        """
        self._connection = Connection(url, api_key, timeout, patience)
        self._http = httpx.Client(transport=transport, **self._connection.options())

    @property
    def url(self) -> str:
        return self._connection.url

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _result(self, steps: Steps[T]) -> T:
        doing = _Doing(self._http, self._connection)
        with closing(doing):
            try:
                wish = next(steps)
                while True:
                    wish = doing.go_on(steps, wish)
            except StopIteration as end:
                result: T = end.value
                return result

    def _told(self, steps: Telling[T]) -> Generator[T, None, None]:
        doing = _Doing(self._http, self._connection)
        with closing(doing):
            try:
                wish = next(steps)
                while True:
                    if isinstance(wish, Tell):
                        yield wish.item
                        wish = next(steps)
                    else:
                        wish = doing.go_on(steps, wish)
            except StopIteration:
                return


class _Doing:
    """Does what one call wants."""

    def __init__(self, http: httpx.Client, connection: Connection) -> None:
        self._http = http
        self._connection = connection
        self._stream: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())

    def go_on(self, steps: Any, wish: Wish) -> Any:
        """What is wanted next, once the wish is done."""
        try:
            reply = self._done(wish)
        except httpx.TransportError as error:
            return steps.throw(self._connection.lost(error))
        return steps.send(reply)

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _done(self, wish: Wish) -> object:
        match wish:
            case Send(request):
                return self._send(request, stream=False)
            case Open(request):
                return self._send(request, stream=True)
            case Read():
                return next(self._chunks, None)
            case Pause(seconds):
                time.sleep(seconds)
                return None
            case Load(load):
                return load()

    def _send(self, request: Request, *, stream: bool) -> Answer:
        self.close()
        built = self._http.build_request(**self._connection.arguments(request))
        response = self._http.send(built, stream=True)
        if stream and response.is_success:
            self._stream, self._chunks = response, response.iter_bytes()
            return answer_of(response, b"")
        with closing(response):
            return answer_of(response, response.read())

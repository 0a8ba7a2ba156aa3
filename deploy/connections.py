"""Connections of the server, bounded in number, time and bytes; and its end, when every request is answered."""

import contextlib
import json
import signal
from http import HTTPStatus

from uvicorn import Server
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 32_768  # of a request's line and headers
NO_HTTP = (400, "this is no HTTP request")


def protocol(most: int, seconds: float) -> type[HttpToolsProtocol]:
    """A protocol of `most` connections at a time, whose requests have `seconds` for their line and headers."""

    class Bounded(HttpToolsProtocol):
        in_head, head_bytes, timer = True, 0, None

        def connection_made(self, transport):
            super().connection_made(transport)
            if len(self.connections) > most:
                self.refuse(503, f"{most} connections are open, and no more are taken: come again later")
                return
            self.begin_head()

        def begin_head(self):
            self.in_head, self.head_bytes = True, 0
            self.timer = self.timer or self.loop.call_later(seconds, self.refuse, 408, "no request came within "
                                                            f"{seconds:g} s: send it at once")

        def end_timer(self):
            if self.timer:
                self.timer.cancel()
                self.timer = None

        def data_received(self, data):
            if self.transport.is_closing():
                return
            super().data_received(data)
            if self.in_head:
                self.head_bytes += len(data)
                if self.head_bytes > HEAD_BYTES:
                    self.refuse(431, f"the request's headers are longer than {HEAD_BYTES} bytes")

        def on_message_begin(self):
            super().on_message_begin()
            self.begin_head()

        def on_headers_complete(self):
            self.in_head = False
            self.end_timer()
            super().on_headers_complete()

        def connection_lost(self, exc):
            self.end_timer()
            super().connection_lost(exc)

        def refuse(self, status, sentence):
            """Answer before the application is asked, and close; behind an answer that is still due, only close."""
            self.end_timer()
            due = self.cycle and not self.cycle.response_complete
            if due and (self.pipeline or self.cycle.response_started or not self.cycle.more_body):
                self.cycle.keep_alive = False
                self.flow.pause_reading()
                return
            if not self.transport.is_closing():
                body = json.dumps({"error": sentence}).encode()
                again = "retry-after: 1\r\n" * (status == 503)
                self.transport.write(f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json"
                                     f"\r\ncontent-length: {len(body)}\r\n{again}connection: close\r\n\r\n".encode()
                                     + body)
                self.transport.close()

        def send_400_response(self, msg):  # in place of uvicorn's plain text
            self.refuse(*NO_HTTP)

    return Bounded


class Draining(Server):
    """Ends at SIGTERM or SIGINT when all accepted requests are answered, and returns instead of raising the signal."""

    def __init__(self, config, on_end):
        """`on_end` is called at the signal."""
        super().__init__(config)
        self.on_end = on_end

    @contextlib.contextmanager
    def capture_signals(self):
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, self.handle_exit)
        yield

    def handle_exit(self, sig, frame):
        self.on_end()
        self.should_exit = True

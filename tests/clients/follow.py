"""Follows a stream of events with httpx-sse, and prints each event as a line of JSON."""

import json
import sys
import time

import httpx
from httpx_sse import SSEError, connect_sse

url, last_id, pause = sys.argv[1], "", 0.5
while True:
    headers = {"Last-Event-ID": last_id} if last_id else {}
    try:
        with httpx.Client(timeout=30) as client, connect_sse(client, "GET", url, headers=headers) as stream:
            for sse in stream.iter_sse():
                last_id = sse.id or last_id
                pause = pause if sse.retry is None else sse.retry / 1000
                print(json.dumps({"kind": sse.event, "id": sse.id, "data": json.loads(sse.data)}), flush=True)
    except (httpx.TransportError, SSEError):
        time.sleep(pause)

// Follows a stream of events with a client from npm, and prints each event as a line of JSON.

const [client, url] = process.argv.slice(2);
const KINDS = ["snapshot", "status", "progress", "erased", "reset", "overflow"];

function tell(kind, id, data) {
  console.log(JSON.stringify({ kind, id, data: JSON.parse(data) }));
}

async function withEventSource() {
  const { EventSource } = await import("eventsource");
  const source = new EventSource(url);
  for (const kind of KINDS) source.addEventListener(kind, (event) => tell(kind, event.lastEventId, event.data));
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) throw new Error("it has given up");
  };
}

async function withFetchEventSource() {
  // It is made for browsers, and asks whether its page is seen.
  globalThis.window = globalThis;
  globalThis.document = { hidden: false, addEventListener() {}, removeEventListener() {} };
  const { fetchEventSource } = await import("@microsoft/fetch-event-source");
  await fetchEventSource(url, {
    onmessage: ({ event, id, data }) => tell(event, id, data),
    onclose() {
      throw new Error("come back");
    },
  });
}

await { eventsource: withEventSource, "fetch-event-source": withFetchEventSource }[client]();

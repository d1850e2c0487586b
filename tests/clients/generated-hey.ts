// Uploads, follows and downloads with what @hey-api/openapi-ts generated.

import { readFileSync } from "node:fs";
import { client } from "./forge-client/client.gen";
import { getAvatar, getStatus, streamEvents, submitPhoto } from "./forge-client/sdk.gen";

const [url, file] = process.argv.slice(2);
client.setConfig({ baseUrl: url, throwOnError: true });
const photo = new File([readFileSync(file)], "me.jpg");
const path = { customerId: "ana" };
const { data: job } = await submitPhoto({ path, body: { photo, prompt: "smiling", seed: 5 }, throwOnError: true });
const ofJob = { ...path, jobId: job.jobId };
const { stream } = await streamEvents({ path, query: { jobId: job.jobId, after: "0" } });
let changes = 0;
for await (const event of stream) if ("isTerminal" in event && ++changes && event.isTerminal) break;
const { data: ended } = await getStatus({ path: ofJob, throwOnError: true });
const { data: avatar } = await getAvatar({ path: ofJob, parseAs: "blob", throwOnError: true });
console.log(ended.status, ended.seed, (avatar as Blob).size);
process.exit(0);

// Uploads, follows and downloads with openapi-fetch and the types that openapi-typescript generated.

import { readFileSync } from "node:fs";
import createClient from "openapi-fetch";
import type { paths } from "./schema";

const [url, file] = process.argv.slice(2);
const client = createClient<paths>({ baseUrl: url });
const customer = { customerId: "ana" };
const form = new FormData();
form.set("photo", new Blob([readFileSync(file)]), "me.jpg");
form.set("prompt", "smiling");
form.set("seed", "5");
const { data: job } = await client.POST("/customers/{customerId}", {
  params: { path: customer },
  body: { photo: file },
  bodySerializer: () => form,
});
if (!job) throw new Error("it was refused");
const path = { ...customer, jobId: job.jobId };
const { data: ended } = await client.GET("/customers/{customerId}/photos/{jobId}/status", {
  params: { path, query: { waitSeconds: 30 } },
});
const { data: avatar } = await client.GET("/customers/{customerId}/photos/{jobId}/generated", {
  params: { path },
  parseAs: "blob",
});
console.log(ended?.status, ended?.seed, avatar?.size);

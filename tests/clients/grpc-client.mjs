// Submits, follows and gets with @grpc/grpc-js, and is refused once.

import { readFileSync } from "node:fs";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const [address, photo, proto] = process.argv.slice(2);
const definition = loader.loadSync(proto, { keepCase: false, longs: Number, enums: String, defaults: false });
const { ProfilePhotoJobService } = grpc.loadPackageDefinition(definition).avatarforge.v1;
const client = new ProfilePhotoJobService(address, grpc.credentials.createInsecure());
const call = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, (error, answer) => (error ? reject(error) : resolve(answer))),
  );

const job = await call("submitPhoto", { customerId: "ana", photo: readFileSync(photo), seed: 5 });
const statuses = [];
for await (const message of client.streamStatus({ customerId: "ana", jobId: job.jobId, afterSeq: 0 }))
  if (!message.progress) statuses.push(message.status.replace("PROCESSING_STATUS_", ""));
const ended = await call("getStatus", { customerId: "ana", jobId: job.jobId });
const refused = await call("getStatus", { customerId: "ana", jobId: "x" }).catch((error) => error);
const code = refused.metadata.get("avatarforge-code")[0];
console.log(JSON.stringify({ statuses, seed: ended.seed, refused: grpc.status[refused.code], code }));

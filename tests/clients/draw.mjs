// Has an avatar made through AUTOMATIC1111's API with npm's stable-diffusion-api.

import { readFileSync } from "node:fs";
import sharp from "sharp";
import api from "stable-diffusion-api";

const [url, photo] = process.argv.slice(2);
const client = new api.default({ baseUrl: url });
const [model] = await client.getSdModels();
await client.setOptions({ sd_model_checkpoint: model.title });
await client.refreshCheckpoints();
await Promise.all([
  client.getSamplers(),
  client.getUpscalers(),
  client.getPromptStyles(),
  client.getCmdFlags(),
  client.getHypernetworks(),
  client.getFaceRestorers(),
  client.getRealesrganModels(),
]);
const result = await client.img2img({
  init_images: [sharp(readFileSync(photo))],
  prompt: "smiling",
  seed: 5,
  width: 128,
  height: 128,
});
const { width, height } = await result.image.metadata();
const info = JSON.parse(result.info);
console.log(JSON.stringify({ sizes: [[width, height]], seed: info.seed, sampler: info.sampler_name }));

"""Has an avatar made through AUTOMATIC1111's API with a client of that name, and prints what came of it."""

import json
import sys
from urllib.parse import urlsplit

from PIL import Image

client, url, photo = sys.argv[1:]
image = Image.open(photo)
if client == "webuiapi":
    import webuiapi

    api = webuiapi.WebUIApi(host=urlsplit(url).hostname, port=urlsplit(url).port)
    api.util_set_model(api.util_get_model_names()[0])
    for lists in (
        "sd_vae",
        "upscalers",
        "loras",
        "prompt_styles",
        "scripts",
        "embeddings",
        "cmd_flags",
        "memory",
    ):
        getattr(api, f"get_{lists}")()
    api.refresh_checkpoints()
    result = api.img2img(
        images=[image],
        prompt="smiling",
        seed=5,
        width=128,
        height=128,
        batch_size=2,
        sampler_name=api.util_get_sampler_names()[0],
        scheduler=api.util_get_scheduler_names()[0],
    )
    images, info = result.images, result.info
else:
    from sd_backend_client import DiffusionParams, connect_to_backend

    backend = connect_to_backend(url)
    lists = backend.get_samplers, backend.get_models, backend.get_styles, backend.get_scripts, backend.get_vae
    assert all(call() is not None for call in (*lists, backend.get_script_info, backend.get_upscalers))
    params = DiffusionParams(prompt="smiling", seed=5, width=128, height=128, init_images=[image])
    answer = backend.submit_img2img(params).wait(timeout=60)
    images, info = answer.images, answer.raw_info.model_dump()
told = {"sizes": [image.size for image in images], "seed": info["seed"], "sampler": info["sampler_name"]}
print(json.dumps(told))

"""Receive webhooks, and trust only those that AvatarForge has signed.

    export WEBHOOK_SECRETS="$(cat data/webhook-secret)"  # several with commas, while they are rotated
    uvicorn examples.webhook_receiver:app --port 8800

An upload names it as `callbackUrl=http://127.0.0.1:8800/avatarforge`. Addresses of this machine are called
only by an AvatarForge that was started with AVATARFORGE_WEBHOOK_ALLOW_PRIVATE=true.
"""

import os

from fastapi import FastAPI, HTTPException, Request

from avatarforge.client import InvalidWebhook, verify_webhook

app = FastAPI()
seen: set[str] = set()  # A real receiver keeps it in its database.


@app.post("/avatarforge", status_code=204)
async def job_ended(request: Request) -> None:
    secrets = os.environ["WEBHOOK_SECRETS"].split(",")
    try:
        webhook = verify_webhook(request.headers, await request.body(), secrets)
    except InvalidWebhook as error:
        raise HTTPException(401, str(error)) from error
    if webhook.webhook_id in seen:
        return  # The same call again: our last answer was lost on its way.
    seen.add(webhook.webhook_id)
    job = webhook.job
    print(
        f"{job.customer_id}: job {job.job_id} is {job.status}, its avatar at {job.generated_url}", flush=True
    )

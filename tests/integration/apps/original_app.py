"""An application as its author wrote it for celery-batches 0.11, and has not touched since."""

import os
from collections import Counter
from urllib.parse import urlparse

from celery import Celery

from celery_batches import Batches

app = Celery("original")
app.config_from_object("celeryconfig")


@app.task(base=Batches, flush_every=10, flush_interval=1)
def count_click(requests):
    """Count the clicks on each URL; every caller learns how many there were in its batch."""
    count = Counter(request.kwargs["url"] for request in requests)
    for request in requests:
        app.backend.mark_as_done(request.id, count[request.kwargs["url"]], request=request)


@app.task(base=Batches, flush_every=10, flush_interval=1)
def wot_api(requests):
    """Ask an API for the reputation of many domains at once."""
    sig = lambda url: url  # noqa: E731
    reponses = wot_api_real(sig(*request.args, **request.kwargs) for request in requests)
    # use mark_as_done to manually return response data
    for response, request in zip(reponses, requests):  # noqa: B905
        app.backend.mark_as_done(request.id, response, request=request)


def wot_api_real(urls):
    domains = [urlparse(url).netloc for url in urls]
    table = {domain: len(domain) for domain in domains}
    return [table[domain] for domain in domains]


@app.task(base=Batches, flush_every=10, flush_interval=1)
def unreliable(requests):
    """Try the odd ones again later."""
    for request in requests:
        number = request.args[0]
        attempts = f"attempts-{request.id}"
        if number % 2 and not os.path.exists(attempts):
            open(attempts, "w").close()
            unreliable.apply_async(
                args=request.args,
                kwargs=request.kwargs,
                countdown=0.2,
                task_id=request.id,
                reply_to=request.reply_to,  # Of use with rpc:// only.
            )
        else:
            app.backend.mark_as_done(request.id, number * request.kwargs["by"], request=request)


@app.task
def ordinary(number):
    return number + 1

"""The HTTP API. `ROUTERS` is the URL map: every router in one ordered list."""

from tokka.api import admin, aitta, chat, chat_page, completions, health, models, reference, tokenize

ROUTERS = [
    chat.router,
    completions.router,
    models.router,
    tokenize.router,
    health.router,
    admin.router,
    aitta.router,
    chat_page.router,
    reference.router,
]

"""The HTTP API. `ROUTERS` is the URL map: every router in one ordered list."""

from tokka.api import admin, aitta, chat, completions, health, models, reference, tokenize, ui

ROUTERS = [
    chat.router,
    completions.router,
    models.router,
    tokenize.router,
    health.router,
    admin.router,
    aitta.router,
    ui.router,
    reference.router,
]

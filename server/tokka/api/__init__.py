"""The URL map: every router in one ordered list."""

from tokka.api import admin, aitta, chat, completions, health, models, tokenize, ui

ROUTERS = [
    chat.router,
    completions.router,
    models.router,
    tokenize.router,
    health.router,
    admin.router,
    aitta.router,
    ui.router,
]

"""The HTTP API. `ROUTERS` is the URL map: every router in one ordered list."""

from tokka.api import (
    admin,
    aitta,
    chat,
    chat_page,
    completions,
    embeddings,
    fleet,
    health,
    messages,
    models,
    reference,
    response_socket,
    responses,
    scores,
    tokenize,
)

# Generations. `Endpoints` calls them without FastAPI's routing, so every route is POST, has no path parameters, and its
# endpoint takes a `CurrentCall` alone.
GENERATE_ROUTERS = [
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    embeddings.router,
    scores.router,
]
ROUTERS = [
    *GENERATE_ROUTERS,
    messages.counting,
    responses.stored,
    response_socket.router,
    models.router,
    tokenize.router,
    health.router,
    admin.router,
    fleet.router,
    aitta.router,
    chat_page.router,
    reference.router,
]

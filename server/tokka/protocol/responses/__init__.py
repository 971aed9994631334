"""The wire format of POST /v1/responses: request, items, tools, response object and events."""

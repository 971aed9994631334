"""The wire between a gateway and its workers: frames, the handshake, and the messages of both directions. Pure."""

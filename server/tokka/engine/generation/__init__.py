"""From tokens to events, the same for every engine: length, text, stop strings, buffering."""
